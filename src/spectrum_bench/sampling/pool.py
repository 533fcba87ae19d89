"""Many devices with a model each: Ray actors that pull jobs."""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.records import Failure, Record
from spectrum_bench.sampling.worker import Worker, keep

DEATHS = 3  # of workers on one sample: then it is set aside

LOSSES = 3  # of workers in a row, for each worker, with no sample finished in between: then the run ends

PATIENCE = 600  # seconds without any worker, before the run ends


def run_jobs(
    jobs: list[Job], cfg: dict, build: Callable, folder: Path, on_step: Callable | None = None
) -> Iterator[Record | Failure]:
    """Make each job's sample and put it and its record on disk, or why there is none.

    One device: in this process, no engine. ngpu workers: Ray actors, each with the model and a device of its own, one
    job at a time; whoever is done takes the next, so a slow worker does not hold the others.

    Args:
        cfg: resolved configuration, plain data.
        build: makes the Algorithm from `cfg`.
        on_step: called after each denoising step of a job with whether the network was computed; by workers, once
            their job is done.

    Raises:
        UserError: the algorithm does not fit the model, or the workers keep dying.
    """
    if cfg["ngpu"] == 1 and cfg["engine"]["address"] is None:
        worker = Worker(cfg, build)
        for job in jobs:
            yield keep(folder, *worker.make(job, on_step))
    else:
        yield from _run_on_ray(jobs, cfg, build, folder, on_step)


def _run_on_ray(jobs: list[Job], cfg: dict, build: Callable, folder: Path, on_step) -> Iterator[Record | Failure]:
    """The pull loop. Jobs go only to workers that have loaded the model; a worker that dies gives its job back and is
    replaced. What they make comes back here and is written by this process alone, so that nodes need not share a file
    system; the model's weights and this code must be on each."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS", "RAY_worker_niceness"):  # Ray's own niceness is 15
        os.environ.setdefault(name, "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import torch

    engine, count = cfg["engine"], cfg["ngpu"]
    local = engine["address"] is None
    cuda = cfg["device"] != "cpu" and (torch.cuda.is_available() or not local)
    own = (
        {"num_cpus": count, "num_gpus": count if cuda else 0, "include_dashboard": engine["dashboard"]} if local else {}
    )
    log = Path(folder) / "workers.log"
    try:
        ray.init(address=engine["address"] or "local", log_to_driver=False, configure_logging=False, **own)
    except Exception as error:  # a bare one if the machine is too busy
        where = f"engine.address={engine['address']}" if engine["address"] else "this machine"
        raise UserError(f"Ray did not start on {where}: {' '.join(str(error).split())[:300]}") from None
    try:
        source = str(ROOT / "src")
        shared = {"device": "cuda"} if cuda else {"device": "cpu", "threads": max(1, cfg["threads"] // count)}
        options = {"num_gpus": 1 if cuda else 0, "num_cpus": 1, "max_restarts": 0}
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": source, "OMP_NUM_THREADS": str(shared.get("threads", 1))}}
        remote = ray.remote(_Remote).options(**options)

        def hire():
            return remote.remote(cfg | shared, build, cuda or count == 1, str(log.resolve()))

        yield from _pull(ray, jobs, count, hire, folder, on_step, cfg["num_inference_steps"])
    finally:
        ray.shutdown()


class _Remote:
    """A Worker in a process of its own, whose output goes to the run's log file."""

    def __init__(self, cfg: dict, build: Callable, alone: bool, log: str):
        with suppress(OSError):  # on a node that does not have the folder Ray's own log has it
            file = open(log, "a", buffering=1)  # noqa: SIM115  open for as long as the process lives
            sys.stdout = sys.stderr = file
        self.arguments, self.worker = (cfg, build, alone), None

    def load(self) -> str | None:
        """Load the model; why not, if it cannot be."""
        try:
            self.worker = Worker(*self.arguments)
        except (UserError, RuntimeError, OSError) as error:
            return " ".join(str(error).split())
        return None

    def make(self, job: Job) -> tuple[Record | Failure, dict[str, bytes]] | str:
        """What came of the job, see Worker; a string if no job would fare better."""
        try:
            return self.worker.make(job)
        except UserError as error:
            return str(error)


def _pull(ray, jobs: list[Job], count: int, hire: Callable, folder: Path, on_step, steps: int):
    waiting, deaths, losses = deque(jobs), Counter(), 0
    idle, busy = [], {}  # busy: what is awaited -> (worker, job), job None while it loads

    def begin():
        worker = hire()
        busy[worker.load.remote()] = worker, None

    for _ in range(min(count, len(jobs))):
        begin()
    last = time.monotonic()
    while waiting or any(job is not None for _, job in busy.values()):
        while idle and waiting:
            worker, job = idle.pop(), waiting.popleft()
            busy[worker.make.remote(job)] = worker, job
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=5)
        if not ready and all(job is None for _, job in busy.values()) and time.monotonic() - last > PATIENCE:
            raise UserError(f"no worker in {PATIENCE} s: are there {count} devices? (ngpu=, engine.address=)")
        for done in ready:
            last = time.monotonic()
            worker, job = busy.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayTaskError as error:  # the worker lives: what it met, another would meet too
                raise UserError(
                    f"a worker met {' '.join(str(error.cause).split())}: see {folder}/workers.log"
                ) from None
            except ray.exceptions.RayError:  # the worker or its node died
                losses += 1
                if losses > LOSSES * count + DEATHS:
                    raise UserError(f"{losses} workers died in a row: see {folder}/workers.log") from None
                if job is not None:
                    deaths[job.id] += 1
                    if deaths[job.id] < DEATHS:
                        waiting.appendleft(job)
                    else:
                        yield keep(folder, Failure.of(job, RuntimeError(f"{DEATHS} workers died on it")), {})
                begin()
                continue
            if isinstance(outcome, str):
                raise UserError(outcome)
            idle.append(worker)
            if job is None:
                continue
            losses, outcome = 0, keep(folder, *outcome)
            if isinstance(outcome, Record) and on_step is not None:
                for step in range(steps):
                    on_step(step in outcome.computed_steps)
            yield outcome
