"""The main loop: configuration -> checks -> jobs -> samples and records."""

import hashlib
import inspect
import os
import sys
from pathlib import Path

import numpy as np
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from . import forecasters, gates, schedules
from .arguments import INTERRUPTED
from .cli import calibrated, checked
from .jobs import (
    DESCRIPTIVE,
    Job,
    Record,
    UserError,
    collect_records,
    finished,
    make_jobs,
    only_run,
    read_failures,
    read_prompts,
    write_atomically,
)

ALIASES = ("window_size", "flex_window", "warmup_steps")  # upstream's keys; schedules and forecasters may read them
# What decides a sample's pixels, with its seed.
IDENTITY = ("model", "schedule", "site", "algo", "num_inference_steps", "runtime")
FREE = ("total_prompt_num", "samples_per_prompt", "output_base_path", "exp_name", "ngpu", "device", "threads")
FREE += ("warmup_samples", "keep_latents", "retry_failed", "engine")
SOME_FAILED = 3  # exit code: the run went to its end, but not every sample could be made


def main(cfg: DictConfig) -> None:
    """Run one experiment: everything is checked before a model is loaded, and only what is missing is made."""
    from .models import identify, locate

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
    from .engine import run_jobs

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


def check_aliases(cfg: DictConfig) -> None:
    """Refuse an upstream key that was given and that the chosen schedule and algorithm would silently ignore."""
    given = {o.lstrip("+~").split("=", 1)[0] for o in HydraConfig.get().overrides.task}
    parts = {k: cfg[k] for k in ("schedule", "algo") if k in cfg}
    read = str([OmegaConf.to_container(part, resolve=False) for part in parts.values()])
    for alias in ALIASES:
        if alias in given and f"${{{alias}}}" not in read:
            readers = [a for a in ALIASES if f"${{{a}}}" in read]
            raise UserError(
                f"{alias} is not read by algo={cfg.algo.name} with this schedule"
                + (f" (it reads {', '.join(readers)})" if readers else "")
                + ": leave it out, or set the schedule's own keys, e.g. schedule.interval=4"
            )


def build(plain: dict):
    """The Algorithm of a resolved configuration.

    Raises:
        UserError: arguments that its functions do not take, or values that make no sense.
    """
    from .generate import Algorithm

    try:
        schedule, site, forecaster = (
            instantiate(node) if node else None
            for node in (plain["schedule"], plain["site"], plain["algo"]["forecaster"])
        )
        mask = schedules.plan(schedule, plain["num_inference_steps"])
        if site is None and (mask is None or not mask.all()):
            raise ValueError(f"algo={plain['algo']['name']} caches nothing, so schedule=full is the only one for it")
        if site is not None and forecaster is None:
            raise ValueError(f"site and forecaster belong together: algo={plain['algo']['name']} has no forecaster")
        if mask is None:
            gates.check(schedule, plain["num_inference_steps"], site)
        forecaster = forecaster or forecasters.reuse
        forecaster(np.arange(3.0), 4.0)
        if hasattr(site, "check"):
            site.check(schedule, forecaster)
    except (InstantiationException, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error.__cause__ or error).split())) from None
    return Algorithm(plain["algo"]["name"], schedule, forecaster, site)


def claim(folder: Path, plain: dict) -> None:
    """Write `config.yaml`, or make sure that the one there is of the same experiment."""
    path = folder / "config.yaml"
    if path.exists():
        try:
            ours, theirs = comparable(plain), comparable(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
            raise UserError(f"{path} is damaged: choose another exp_name, or remove that folder") from None
        keys = [k for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k)]
        if keys:
            raise UserError(
                f"{folder} was made with another configuration ({', '.join(keys)} differ): "
                "choose another exp_name, or remove that folder"
            )
    locked = [p for p in (folder, folder / "samples", folder / "records") if p.exists() and not os.access(p, os.W_OK)]
    if locked:
        raise UserError(f"cannot write to {locked[0]}: change its permissions, or choose another exp_name")
    if path.exists():
        return
    try:
        write_atomically(path, yaml.safe_dump(plain, allow_unicode=True, sort_keys=False).encode())
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another output_base_path") from None


def comparable(plain: dict) -> dict:
    """The part of a configuration that makes two runs the same experiment."""
    kept = {k: v for k, v in plain.items() if k not in (*FREE, "labels")}  # what FREE names is free to change
    return kept | {"model": {k: v for k, v in kept["model"].items() if k not in DESCRIPTIVE}}


# ---------------------------------------------------------------------------------------------------------------------
# What a person reads


def labels(plain: dict) -> dict[str, str]:
    """The algorithm in words, for records and tables: name(argument=value, ...), without lists and defaults."""

    def label(node):
        if not node:
            return "-"
        defaults = {k: p.default for k, p in inspect.signature(get_object(node["_target_"])).parameters.items()}
        told = {k: v for k, v in node.items() if isinstance(v, (int, float, str)) and v != defaults.get(k, k)}
        arguments = ", ".join(f"{k}={v}" for k, v in told.items() if not k.startswith("_"))
        name = node["_target_"].rpartition(".")[2]
        return f"{name}({arguments})" if arguments else name

    return {
        "algo": plain["algo"]["name"],
        "schedule": label(plain["schedule"]),
        "forecaster": label(plain["algo"]["forecaster"]),
        "site": label(plain["site"]),
    }


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
