"""The main loop: configuration -> checks -> jobs -> samples and records."""

import hashlib
import sys
from pathlib import Path

from omegaconf import DictConfig

from spectrum_bench import schedules
from spectrum_bench.caching.algorithm import build
from spectrum_bench.commands.compose import calibrated
from spectrum_bench.commands.words import INTERRUPTED
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.jobs import Job, make_jobs, read_prompts
from spectrum_bench.sampling.records import Record, collect_records, finished, only_run, read_failures
from spectrum_bench.sampling.settings import IDENTITY, check_aliases, checked, claim, comparable, labels

SOME_FAILED = 3  # exit code: the run went to its end, but not every sample could be made


def main(cfg: DictConfig) -> None:
    """Run one experiment: everything is checked before a model is loaded, and only what is missing is made."""
    from spectrum_bench.paths import locate
    from spectrum_bench.sampling.models import identify

    check_aliases(cfg)
    plain = checked(cfg)
    algorithm = build(plain)
    plain["labels"] = labels(plain)
    prompt_file = locate(cfg.prompt_file)
    prompts = read_prompts(prompt_file, cfg.total_prompt_num)
    plain["prompts_sha256"] = hashlib.sha256(prompt_file.read_bytes()).hexdigest()
    plain["model"]["weights"] = identify(plain["model"])
    if calibrated(plain["algo"]["name"], "weights", _root_=cfg) not in (None, plain["model"]["weights"]):
        words = f"algo={plain['algo']['name']} model={plain['model']['name']}"
        print(f"its constants are of other weights: python src/calibrate.py {words}", file=sys.stderr)
    folder = Path(plain["output_base_path"]) / plain["exp_name"]
    claim(folder, plain)

    with only_run(folder):
        identity = {key: comparable(plain)[key] for key in IDENTITY}
        jobs = make_jobs(prompts, cfg.seed, identity, cfg.samples_per_prompt)
        if code := work(plain, folder, algorithm, jobs):
            sys.exit(code)


def work(plain: dict, folder: Path, algorithm, jobs: list[Job]) -> int:
    """Make what is missing, say what came of it, and give the exit code: 0 if every sample is there, SOME_FAILED if
    some could not be made."""
    from spectrum_bench.sampling.pool import run_jobs

    wanted = {job.id for job in jobs}
    failed = set() if plain["retry_failed"] else {failure.id for failure in read_failures(folder)}
    kept = {path.stem for path in folder.glob("latents/*.safetensors")}
    done = finished(folder) - ({job.id for job in jobs if job.prompt_index < plain["keep_latents"]} - kept)
    missing = [job for job in jobs if job.id not in done and job.id not in failed]
    print(describe(algorithm, plain))
    print(f"{len(jobs)} samples, {len(done & wanted)} of them finished, in {folder}")
    code = 0
    try:
        try:
            if missing:
                show_progress(run_jobs, missing, plain, folder)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from here", file=sys.stderr)
            code = INTERRUPTED
        finally:
            records = collect_records(folder)
    except OSError as error:  # a full disk, say
        reason = error.strerror or error
        raise UserError(f"{folder}: {reason}: what is finished is kept, the same command goes on from it") from None
    print(summary(records))
    failures = [failure for failure in read_failures(folder) if failure.id in wanted]
    for failure in failures[:5]:
        print(f"failed: prompt {failure.prompt_index}: {failure.reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(jobs)} samples failed; retry_failed=true tries them again", file=sys.stderr)
    return code or (SOME_FAILED if failures else 0)


# ---------------------------------------------------------------------------------------------------------------------
# Checks


# ---------------------------------------------------------------------------------------------------------------------
# What a person reads


def describe(algorithm, plain: dict) -> str:
    steps = plain["num_inference_steps"]
    words = plain["labels"]
    head = f"{plain['model']['name']}: {words['algo']} = {words['schedule']} x {words['forecaster']} x {words['site']}"
    mask = schedules.plan(algorithm.schedule, steps)
    if mask is None:
        return f"{head}\n{steps} steps; which are computed is decided while it runs"
    bar = "".join("#" if computed else "." for computed in mask)
    listed = " ".join(map(str, mask.nonzero()[0]))
    return f"{head}\n{mask.sum()} of {steps} steps computed: {listed}\n[{bar}]"


def show_progress(run_jobs, jobs: list[Job], plain: dict, folder: Path) -> None:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[samples]}/{task.fields[total_samples]} samples"),
        TextColumn("{task.fields[passes]} passes"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    steps = plain["num_inference_steps"]
    with Progress(*columns) as bar:
        task = bar.add_task("loading", total=len(jobs) * steps, samples=0, total_samples=len(jobs), passes=0)
        passes = 0

        def on_step(computed: bool) -> None:
            nonlocal passes
            passes += computed
            bar.update(task, advance=1, passes=passes, description="sampling")

        for count, _ in enumerate(run_jobs(jobs, plain, build, folder, on_step), 1):
            bar.update(task, samples=count)


def summary(records: list[Record]) -> str:
    import statistics

    if not records:
        return "no sample is finished"
    median = {
        k: statistics.median([r.latency[k] for r in records if r.latency[k] is not None] or [0])
        for k in records[0].latency
    }
    passes = statistics.mean(r.nfe for r in records)
    text = f"{len(records)} samples, {passes:g} passes each; median {median['total']:.3f} s"
    text += f" ({1e3 * median['full_step']:.2f} ms a full step"
    if any(r.latency["skipped_step"] is not None for r in records):
        share = median["skipped_step"] / median["full_step"]
        text += f", {1e3 * median['skipped_step']:.2f} ms a skipped one: {100 * share:.0f} %"
    return text + ")"
