"""The main loop: settings -> jobs -> samples and records."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.errors import INTERRUPTED, SOME_FAILED, UserError
from spectrum_bench.sampling.claim import claim
from spectrum_bench.sampling.cost import check_memory, lines, read_cost, write_cost
from spectrum_bench.sampling.counting import count
from spectrum_bench.sampling.identity import headline, identity, labels
from spectrum_bench.sampling.jobs import Job, make_jobs
from spectrum_bench.sampling.pool import run_jobs
from spectrum_bench.sampling.prompts import Prompts
from spectrum_bench.sampling.quantizing import check_quantization
from spectrum_bench.sampling.records import collect_records, only_run, read_failures
from spectrum_bench.sampling.runtime import check_machine
from spectrum_bench.sampling.settings import RunSettings
from spectrum_bench.sampling.state import describe_steps, look, of, summary, tell_failures
from spectrum_bench.sampling.worker import OnStep, Opener
from spectrum_bench.schedules import ALONE


def run(settings: RunSettings, algorithm: Algorithm, prompts: Prompts, opener: Opener | None = None) -> int:
    """Run one experiment. Samples that are finished are not made again.

    Args:
        opener: gives the pipeline, for several runs in one process; by default each run loads it.

    Returns:
        The exit code: 0 if every sample is there; if not, SOME_FAILED or INTERRUPTED.
    """
    check_machine(settings.model.offload, settings.device)
    check_quantization(settings.model.quantization, settings.device)
    folder = Path(settings.output_base_path) / settings.exp_name
    who = identity(settings)
    claim(folder, settings, who, prompts.sha256)
    with only_run(folder):
        jobs = make_jobs(prompts.lines, settings.seed, who, settings.samples_per_prompt)
        state = look(jobs, folder, settings)
        print(headline(settings.model.name, labels(settings)))
        foresee(settings, algorithm, folder, jobs[0])
        print(f"{len(jobs)} samples, {state.finished} of them finished, in {folder}")
        with disk_errors(folder):
            try:
                code = make(state.missing, settings, algorithm, folder, opener)
            finally:
                records = collect_records(folder)
        failures = of(jobs, read_failures(folder))
    print(summary(records))
    tell_failures(failures, len(jobs))
    return code or (SOME_FAILED if failures else 0)


def foresee(settings: RunSettings, algorithm: Algorithm, folder: Path, job: Job) -> None:
    """Print which steps are computed and what a sample costs, and keep the cost in the folder for tables.

    Raises:
        UserError: the algorithm does not fit the model, or weights and cache do not fit the GPU.
    """
    cost, steps = read_cost(folder), settings.num_inference_steps
    if cost is None:
        try:
            cost = count(settings, algorithm, job)
        except UserError:
            raise
        except Exception as error:  # somebody's own pipeline may need numbers, which the meta device has not
            print(describe_steps(algorithm.computed_steps(steps, ALONE), steps, ALONE))
            print(f"the cost is not known beforehand: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return
        write_cost(folder, cost)
    computed = algorithm.computed_steps(steps, cost.starts)
    print(describe_steps(computed, steps, cost.starts), *lines(cost, computed, steps), sep="\n")
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu":
        card = torch.cuda.get_device_properties(device)
        check_memory(cost, card.total_memory, card.name)


def make(
    jobs: list[Job], settings: RunSettings, algorithm: Algorithm, folder: Path, opener: Opener | None = None
) -> int:
    """Make the samples of all jobs, with a progress bar.

    Returns:
        The exit code: INTERRUPTED after Ctrl-C and its like, else 0.

    Raises:
        UserError: the algorithm does not fit the model, or workers keep dying.
    """
    if not jobs:
        return 0
    try:
        with progress(len(jobs), settings.num_inference_steps) as (on_step, on_sample):
            for _ in run_jobs(jobs, settings, algorithm, folder, on_step, opener):
                on_sample()
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return 0


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the disk, such as a full one, into one line. Finished samples stay."""
    try:
        yield
    except OSError as error:
        reason, name = error.strerror or error, str(error.filename or folder)
        where = folder if name.startswith(str(folder)) else name  # a missing program is not the folder's fault
        raise UserError(f"{where}: {reason}: what is finished is kept, the same command goes on from it") from None


@contextmanager
def progress(samples: int, steps: int) -> Iterator[tuple[OnStep, Callable[[], None]]]:
    """A progress bar that counts samples, steps and passes.

    Yields:
        Two functions: call the first one after each step, and the second one after each sample.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[samples]}/{task.fields[total_samples]} samples"),
        TextColumn("{task.fields[passes]} passes"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("loading", total=samples * steps, samples=0, total_samples=samples, passes=0)
        passes = made = 0

        def on_step(computed: bool) -> None:
            nonlocal passes
            passes += computed
            bar.update(task, advance=1, passes=passes, description="sampling")

        def on_sample() -> None:
            nonlocal made
            made += 1
            bar.update(task, samples=made)

        yield on_step, on_sample
