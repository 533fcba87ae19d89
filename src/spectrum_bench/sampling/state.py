"""The state of a run in its folder, and what a person reads of it. A run that has nothing to do is told so from here:
without torch and diffusers, which take seconds to import."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spectrum_bench.errors import SOME_FAILED
from spectrum_bench.sampling.claim import check_writable, stored_config
from spectrum_bench.sampling.cost import lines, of_each, read_cost
from spectrum_bench.sampling.identity import headline
from spectrum_bench.sampling.jobs import Job, make_jobs
from spectrum_bench.sampling.prompts import Prompts
from spectrum_bench.sampling.records import (
    Failure,
    Record,
    collect_records,
    finished,
    kept_records,
    only_run,
    read_failures,
)
from spectrum_bench.sampling.settings import Part, RunSettings
from spectrum_bench.sampling.sources import sources_hash


@dataclass(frozen=True)
class State:
    """The state of a run: how many of its samples are finished, which jobs are left, and all records of its folder."""

    finished: int
    missing: list[Job]
    records: list[Record]


def look(jobs: list[Job], folder: Path, settings: RunSettings) -> State:
    """Compare the jobs with the folder. A sample without the latents that `keep_latents` asks for is made again."""
    records = kept_records(folder)
    done = finished(folder, records)
    with_latents = {path.stem for path in folder.glob("latents/*.safetensors")}
    done -= {job.id for job in jobs if job.prompt_index < settings.keep_latents} - with_latents
    failed = set() if settings.retry_failed else {failure.id for failure in read_failures(folder)}
    missing = [job for job in jobs if job.id not in done and job.id not in failed]
    return State(len(done & {job.id for job in jobs}), missing, records)


def tell_finished(settings: RunSettings, prompts: Prompts) -> int | None:
    """Print what the run would print, if it has nothing to do.

    Returns:
        The exit code; None if something may be left to do, or if nobody can tell without importing the method's parts:
        the settings, or the code that the samples were made with, are others than now.
    """
    folder = Path(settings.output_base_path) / settings.exp_name
    config = stored_config(folder, settings, prompts.sha256) if _is_ours(settings) else None
    if config is None or (cost := read_cost(folder)) is None:
        return None
    check_writable(folder)
    who = {key: value for key, value in config["identity"].items() if key not in ("seed", "prompts_sha256")}
    jobs = make_jobs(prompts.lines, settings.seed, who, settings.samples_per_prompt)
    with only_run(folder):
        state = look(jobs, folder, settings)
        if state.missing:
            return None
        records, failures = collect_records(folder, state.records), of(jobs, read_failures(folder))
    if {record.code for record in records} != {sources_hash()}:
        return None
    steps, computed = settings.num_inference_steps, {tuple(record.computed_steps) for record in records}
    common = list(computed.pop()) if len(computed) == 1 else None
    print(headline(settings.model.name, config["labels"]), describe_steps(common, steps, cost.starts), sep="\n")
    print(*lines(cost, common, steps), sep="\n")
    print(f"{len(jobs)} samples, {state.finished} of them finished, in {folder}", summary(records), sep="\n")
    tell_failures(failures, len(jobs))
    return SOME_FAILED if failures else 0


def _is_ours(settings: RunSettings) -> bool:
    """Whether all parts of the method are this package's, whose sources the records name."""

    def ours(part: Part) -> bool:
        inner = (value for value in part.constants.values() if isinstance(value, Part))
        return part.target.startswith("spectrum_bench.") and all(map(ours, inner))

    return all(part is None or ours(part) for part in settings.method.parts.values())


# ---------------------------------------------------------------------------------------------------------------------
# Lines for a person


def describe_steps(computed: Sequence[int] | None, T: int, starts: Sequence[int]) -> str:
    """Which of T steps are computed; None if that is decided while it runs.

    Args:
        starts: the first step of each network of those that run by turns.
    """
    if computed is None:
        return f"{T} steps; which are computed is decided while it runs"
    marks = ["#" if step in set(computed) else "." for step in range(T)]
    bar = "|".join("".join(marks[start:end]) for start, end in zip(starts, [*starts[1:], T], strict=True))
    each = of_each(computed, starts)
    return f"{len(computed)} of {T} steps computed{each}: {' '.join(map(str, computed))}\n[{bar}]"


def summary(records: list[Record]) -> str:
    """The mean passes and the median times of all finished samples."""
    if not records:
        return "no sample is finished"
    latencies = [record.latency for record in records]
    total = statistics.median(latency["total"] for latency in latencies)
    full = statistics.median(latency["full_step"] for latency in latencies)
    skipped = [latency["skipped_step"] for latency in latencies if latency["skipped_step"] is not None]
    passes = statistics.mean(record.nfe for record in records)
    text = f"{len(records)} samples, {passes:g} passes each; median {total:.3f} s ({1e3 * full:.2f} ms a full step"
    if skipped:
        share = statistics.median(skipped) / full
        text += f", {1e3 * statistics.median(skipped):.2f} ms a skipped one: {100 * share:.0f} %"
    return text + ")"


def of(jobs: list[Job], failures: list[Failure]) -> list[Failure]:
    """The failures of these jobs."""
    ids = {job.id for job in jobs}
    return [failure for failure in failures if failure.id in ids]


def tell_failures(failures: list[Failure], samples: int) -> None:
    """Print the first failures and how to try them again."""
    for failure in failures[:5]:
        print(f"failed: prompt {failure.prompt_index}: {failure.reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {samples} samples failed; retry_failed=true tries them again", file=sys.stderr)
