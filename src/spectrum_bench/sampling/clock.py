"""Times on the device's own clock, and the hardware and software that they were measured on."""

import platform
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import psutil
import torch

from spectrum_bench.sampling.sources import git_sha, sources_hash

CROWD = 0.2  # share of the machine's processors that other programs may keep busy while a CPU's latency is measured
STRANGERS = 2 * 2**30  # bytes of a GPU's memory that other programs may hold; our CUDA context (0.5 GiB) is included


class Laps:
    """Times on the device's own clock. Nothing is synchronised before they are read."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
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
    """Processor seconds since the machine started: those that other programs have used, and all that passed."""
    times = psutil.cpu_times()
    guests = getattr(times, "guest", 0) + getattr(times, "guest_nice", 0)  # these are already in `user`
    there = sum(times) - guests
    return there - times.idle - getattr(times, "iowait", 0) - sum(psutil.Process().cpu_times()[:2]), there


def alone(device: torch.device, before: tuple[float, float]) -> bool:
    """Whether no other program used the device much: the GPU's memory, or the processors since `before`."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device) <= STRANGERS
    others, there = np.subtract(processor_seconds(), before)
    return bool(others <= CROWD * there)


class Environment(TypedDict):
    """The hardware and software that figures were measured on: fields of a Record."""

    device: str
    versions: dict[str, str]
    git_sha: str
    code: str


@cache
def environment(device: str, threads: int) -> Environment:
    """The hardware and software of this run.

    Args:
        device: "cpu", "cuda" or "cuda:<number>".
        threads: how many threads a CPU uses.
    """
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{_cpu()}, {threads} thread(s)"
    packages = ("torch", "diffusers", "transformers", "numpy")
    versions = {"python": platform.python_version()} | {p: version(p) for p in packages}
    return {"device": name, "versions": versions, "git_sha": git_sha(), "code": sources_hash()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
