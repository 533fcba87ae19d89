"""Many devices, each with its own copy of the model: Ray actors that pull jobs."""

import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.replacing import replace_method
from spectrum_bench.errors import UserError
from spectrum_bench.paths import environment_with_package
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.records import Failure, Record
from spectrum_bench.sampling.settings import RunSettings
from spectrum_bench.sampling.worker import Files, OnStep, Opener, Worker, keep

DEATHS = 3  # a sample on which so many workers died is set aside
LOSSES = 3  # the run ends when so many workers for each device die in a row without finishing a sample
PATIENCE = 600  # seconds without any worker before the run ends


def run_jobs(
    jobs: list[Job],
    settings: RunSettings,
    algorithm: Algorithm,
    folder: Path,
    on_step: OnStep | None = None,
    opener: Opener | None = None,
) -> Iterator[Record | Failure]:
    """Make the sample of each job. Write the sample and its record, or the reason of its failure.

    With one device everything happens in this process. With `ngpu` devices each Ray actor has its own copy of the
    model and takes the next job when it has finished one, so that a slow worker does not hold up the others.

    Args:
        on_step: takes whether a denoising step was computed. In this process it is called after each step; for
            workers, when the job is done.
        opener: gives the pipeline in this process; by default it is loaded.

    Raises:
        UserError: the algorithm does not fit the model, or the workers keep dying.
    """
    if settings.ngpu == 1 and settings.engine.address is None:
        worker = Worker(settings, algorithm, opener=opener)
        for job in jobs:
            yield keep(folder, *worker.make(job, on_step))
    else:
        yield from _run_on_ray(jobs, settings, algorithm, folder, on_step)


def _run_on_ray(
    jobs: list[Job], settings: RunSettings, algorithm: Algorithm, folder: Path, on_step: OnStep | None
) -> Iterator[Record | Failure]:
    """Workers send their samples to this process, which alone writes files. Nodes therefore need no shared file system;
    each needs the model's weights and this code."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS", "RAY_worker_niceness"):  # Ray's own niceness is 15
        os.environ.setdefault(name, "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray  # an optional package that takes seconds to import

    address, count = settings.engine.address, settings.ngpu
    cuda = settings.device != "cpu" and (torch.cuda.is_available() or address is not None)
    own: dict[str, Any] = {
        "num_cpus": count,
        "num_gpus": count if cuda else 0,
        "include_dashboard": settings.engine.dashboard,
    }
    ray._private.utils.set_sigterm_handler = lambda handler: None  # it would end this process: see _keep_handler
    try:
        with ExitStack() as undo:
            _ask_no_cloud(undo)
            ray.init(
                address=address or "local",
                log_to_driver=False,
                configure_logging=False,
                **(own if address is None else {}),
            )
    except Exception as error:  # Ray raises a bare Exception if the machine is too busy
        where = f"engine.address={address}" if address else "this machine"
        raise UserError(f"Ray did not start on {where}: {' '.join(str(error).split())[:300]}") from None
    _keep_handler()
    try:
        of_worker = replace(settings, device="cuda") if cuda else _share_of_cpu(settings)
        threads = 1 if cuda else of_worker.threads
        environment = {"PYTHONPATH": environment_with_package()["PYTHONPATH"], "OMP_NUM_THREADS": str(threads)}
        remote = ray.remote(_Remote).options(
            num_gpus=1 if cuda else 0, num_cpus=1, max_restarts=0, runtime_env={"env_vars": environment}
        )
        log = str((Path(folder) / "workers.log").resolve())

        def hire() -> Any:
            return remote.remote(of_worker, algorithm, cuda or count == 1, log)

        yield from _Pull(ray, jobs, hire, folder, on_step, settings.num_inference_steps).outcomes(count)
    finally:
        ray.shutdown()


# A proxy that is not there, on this machine: what asks through it asks nobody.
NOBODY = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def _ask_no_cloud(undo: ExitStack) -> None:
    """Keep Ray's dashboard process from asking the metadata servers of three clouds where it runs. It does so for its
    usage report even where that is switched off. Ray's own processes talk to each other without a proxy."""
    from ray._private import services

    start = services.start_ray_process

    def started(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        if process_type == "dashboard":
            kwargs["env_updates"] = (kwargs.get("env_updates") or {}) | NOBODY | {"no_proxy": "", "NO_PROXY": ""}
        return start(command, process_type, *args, **kwargs)

    replace_method(services, "start_ray_process", started, undo)


def _keep_handler() -> None:
    """Put this process's own handler of TERM back in its place. Ray has one in Python and one in C++ below it, and each
    would end the process before records are gathered."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _share_of_cpu(settings: RunSettings) -> RunSettings:
    return replace(settings, device="cpu", threads=max(1, settings.threads // settings.ngpu))


class _Remote:
    """A Worker in a process of its own, whose output goes to the run's log file."""

    def __init__(self, settings: RunSettings, algorithm: Algorithm, alone: bool, log: str):
        with suppress(OSError):  # a node without this folder writes to Ray's own log
            file = open(log, "a", buffering=1)  # noqa: SIM115  stays open as long as the process lives
            sys.stdout = sys.stderr = file
        self.arguments = (settings, algorithm, alone)
        self.worker: Worker | None = None

    def load(self) -> str | None:
        """Load the model. Returns the reason if that fails, else None."""
        try:
            self.worker = Worker(*self.arguments)
        except (UserError, RuntimeError, OSError) as error:
            return " ".join(str(error).split())
        return None

    def make(self, job: Job) -> tuple[Record | Failure, Files] | str:
        """The outcome of a job (see Worker.make), or an error message that would be the same for every job."""
        assert self.worker is not None  # `load` comes first
        try:
            return self.worker.make(job)
        except UserError as error:
            return str(error)


class _Pull:
    """The pull loop. Only workers that have loaded the model get jobs. A worker that dies is replaced, and its job
    waits again.

    Args:
        ray: the library, or a stand-in in a test.
        hire: starts a worker and returns its handle.
        steps: how many denoising steps a job has, for `on_step`.
    """

    def __init__(
        self,
        ray: Any,
        jobs: list[Job],
        hire: Callable[[], Any],
        folder: Path,
        on_step: OnStep | None,
        steps: int,
    ):
        self.ray, self.hire, self.folder, self.on_step, self.steps = ray, hire, folder, on_step, steps
        self.waiting, self.deaths, self.losses = deque(jobs), Counter[str](), 0
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, Job | None]] = {}  # result -> (worker, job); None while it loads

    def outcomes(self, count: int) -> Iterator[Record | Failure]:
        """The outcome of each job, made by at most `count` workers."""
        for _ in range(min(count, len(self.waiting))):
            self._begin()
        last = time.monotonic()
        while self.waiting or any(job is not None for _, job in self.busy.values()):
            self._assign()
            ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=5)
            loading = all(job is None for _, job in self.busy.values())
            if not ready and loading and time.monotonic() - last > PATIENCE:
                raise UserError(f"no worker in {PATIENCE} s: are there {count} devices? (ngpu=, engine.address=)")
            for done in ready:
                last = time.monotonic()
                outcome = self._receive(done, count)
                if outcome is not None:
                    yield outcome

    def _begin(self) -> None:
        worker = self.hire()
        self.busy[worker.load.remote()] = worker, None

    def _assign(self) -> None:
        while self.idle and self.waiting:
            worker, job = self.idle.pop(), self.waiting.popleft()
            self.busy[worker.make.remote(job)] = worker, job

    def _receive(self, done: Any, count: int) -> Record | Failure | None:
        """Take a worker's result. Returns the outcome of a job that has ended, else None."""
        worker, job = self.busy.pop(done)
        try:
            outcome = self.ray.get(done)
        except self.ray.exceptions.RayTaskError as error:  # another worker would meet the same error
            reason = " ".join(str(error.cause).split())
            raise UserError(f"a worker met {reason}: see {self.folder}/workers.log") from None
        except self.ray.exceptions.RayError:  # the worker or its node died
            return self._bury(job, count)
        if isinstance(outcome, str):
            raise UserError(outcome)
        self.idle.append(worker)
        if job is None:
            return None
        self.losses = 0
        result = keep(self.folder, *outcome)
        if isinstance(result, Record) and self.on_step is not None:
            for step in range(self.steps):
                self.on_step(step in result.computed_steps)
        return result

    def _bury(self, job: Job | None, count: int) -> Failure | None:
        """Replace a worker that died. Its job waits again, or is set aside as a failure."""
        self.losses += 1
        if self.losses > LOSSES * count + DEATHS:
            raise UserError(f"{self.losses} workers died in a row: see {self.folder}/workers.log")
        failure = None
        if job is not None:
            self.deaths[job.id] += 1
            if self.deaths[job.id] < DEATHS:
                self.waiting.appendleft(job)
            else:
                failure = Failure.of(job, RuntimeError(f"{DEATHS} workers died on it"))
                keep(self.folder, failure, {})
        self._begin()
        return failure
