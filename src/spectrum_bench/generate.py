"""One job -> one picture or clip and its figures: seed, stage times, memory."""

import platform
import statistics
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch

from .cache import cached, denoisers
from .forecasters import Weights
from .jobs import Job, UserError
from .models import ROOT
from .schedules import Schedule
from .sites import Site

CROWD = 0.2  # share of the machine's processors that others may keep busy while a CPU's latency is measured
STRANGERS = 2 * 2**30  # bytes of a GPU's memory that others may hold; our own context, some 0.5 GiB, counts as theirs


class NotFinite(RuntimeError):
    """The sample holds NaN or infinity."""


@dataclass(frozen=True)
class Algorithm:
    """A named triple; `site` None is the plain pipeline."""

    name: str
    schedule: Schedule
    forecaster: Weights
    site: Site | None


class Laps:
    """Times on the device's own clock; nothing is synchronised until they are read."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list = []

    def mark(self, *_) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Time from each mark to the next."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if not self._cuda:
            return [b - a for a, b in pairs]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairs]


def processor_seconds() -> tuple[float, float]:
    """Since the machine started: what programs other than this one have used, and all that there was."""
    times = psutil.cpu_times()
    guests = getattr(times, "guest", 0) + getattr(times, "guest_nice", 0)  # counted as user's already
    there = sum(times) - guests
    return there - times.idle - getattr(times, "iowait", 0) - sum(psutil.Process().cpu_times()[:2]), there


def alone(device: torch.device, before: tuple[float, float]) -> bool:
    """Whether the device was ours alone: nobody else's model is on the GPU; the CPU did little else since `before`."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device) <= STRANGERS
    others, there = np.subtract(processor_seconds(), before)
    return bool(others <= CROWD * there)


def generate(
    pipe,
    job: Job,
    algorithm: Algorithm,
    *,
    num_steps: int,
    arguments: dict,
    on_step=None,
    latents: list | None = None,
    batch_size: int = 1,
) -> tuple[np.ndarray, dict]:
    """Make one sample with an unmodified pipeline call.

    The initial noise is drawn on the CPU from the job's own seed, whatever the device.

    Args:
        arguments: further arguments of the pipeline (guidance_scale, height, ...).
        on_step: called after every denoising step with whether the network was computed.
        batch_size: so many samples of the prompt at once, the others from the seeds that follow; the first is returned.
        latents: gets what the scheduler made of each step, (T, ...) in all, float32 on the CPU.

    Returns:
        The picture (H, W, 3) or clip (F, H, W, 3), uint8, and the figures of a Record: computed_steps, nfe, latency,
        alone, peak_memory_bytes, cache_bytes.

    Raises:
        ValueError: the pipeline takes another number of steps than it was told.
        NotFinite: its output is not finite.
    """
    device = pipe._execution_device
    laps, before = Laps(device), processor_seconds()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with cached(
        pipe, schedule=algorithm.schedule, forecaster=algorithm.forecaster, site=algorithm.site, num_steps=num_steps
    ) as session:

        def step_done(pipe, step, timestep, tensors):
            laps.mark()
            if on_step is not None:
                on_step(session.computing)
            tensors = session.callback(pipe, step, timestep, tensors)
            if latents is not None:
                latents.append(tensors["latents"][0].float().cpu())
            laps.mark()  # our own bookkeeping is no part of the next step
            return tensors

        def text_done(*_):  # the denoiser's first call ends the text stage
            laps.mark()
            started.remove()

        generators = [torch.Generator().manual_seed(job.seed + i) for i in range(batch_size)]
        laps.mark()
        started = next(iter(denoisers(pipe).values())).register_forward_pre_hook(text_done)
        try:
            sample = pipe(
                prompt=[job.prompt] * batch_size if batch_size > 1 else job.prompt,
                num_inference_steps=num_steps,
                generator=generators if batch_size > 1 else generators[0],
                callback_on_step_end=step_done,
                output_type="np",
                return_dict=False,
                **arguments,
            )[0][0]
        finally:
            started.remove()
        laps.mark()
    if session.step != num_steps:
        raise ValueError(f"the pipeline took {session.step} steps, not num_inference_steps={num_steps}")
    text, *between, decode = laps.seconds()
    to_itself = alone(device, before)
    steps = between[::2]  # every other lap is the callback
    computed = session.computed_steps
    full = [s for i, s in enumerate(steps) if i in computed]
    skipped = [s for i, s in enumerate(steps) if i not in computed]
    if not np.isfinite(sample).all():
        raise NotFinite("the decoded sample is not finite: try model.dtype=float32")
    return (255 * sample).round().astype(np.uint8), {
        "computed_steps": computed,
        "nfe": len(computed),
        "latency": {
            "text": text,
            "denoise": sum(steps),
            "decode": decode,
            "total": text + sum(steps) + decode,
            "full_step": statistics.median(full),
            "skipped_step": statistics.median(skipped) if skipped else None,
        },
        "alone": to_itself,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "cache_bytes": session.cache_bytes,
    }


@cache
def environment(device: str, threads: int) -> dict:
    """What the figures were measured on: the rest of a Record."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{_cpu()}, {threads} thread(s)"
    packages = ("torch", "diffusers", "transformers", "numpy")
    return {
        "device": name,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "git_sha": _git_sha(),
    }


def generate_all(pipe, jobs: list[Job], algorithm: Algorithm, plain: dict) -> list[tuple[np.ndarray, dict]]:
    """`generate` for each job, by a resolved configuration.

    Raises:
        UserError: the algorithm does not fit this denoiser.
    """
    settings = {"num_steps": plain["num_inference_steps"], "arguments": plain["model"]["arguments"]}
    try:
        return [generate(pipe, job, algorithm, **settings) for job in jobs]
    except ValueError as error:
        raise UserError(str(error)) from None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_sha(root: Path = ROOT) -> str:
    """The commit, "-dirty" if a file of it has been changed since; reports in results/ are what a run leaves."""

    def git(*words):
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!results")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "") or "unknown"
    except OSError:
        return "unknown"
