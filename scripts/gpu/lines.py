"""The budget of a run, and its lines: every result is one line of JSON, written at once."""

import hashlib
import json
import math
import os
import platform
import subprocess
import time
import traceback
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from gpu.device import Device
from spectrum_bench.paths import ROOT


class Run:
    """Budget, device and the file of results."""

    def __init__(self, options: dict):
        self.start = time.monotonic()
        self.simulate, self.quick = options["simulate"] == "true", options["quick"] == "true"
        self.budget = float(options["budget"])
        self.device = Device(self.simulate)
        self.wants_profiler, self.profiled = False, False
        self.limits = {"copy_gb_s": math.nan}  # what the card does at most, once it has been measured
        folder = Path(options["out"] or os.environ.get("OUT") or ROOT / "outputs/gpu_truth")
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "gpu_truth.jsonl").open("a", encoding="utf-8")

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.start)

    def line(self, section: str, told: str | None, **values) -> None:
        """Keep one result; `told` is what the screen shows of it, if anything."""
        at = round(time.monotonic() - self.start, 1)
        row = {"section": section} | {key: _plain(value) for key, value in values.items()} | {"at_s": at}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if told is not None:
            print(f"{at:.0f} {section} {told}"[:200], flush=True)

    def attempt(self, section: str, seconds: float, function, what: str | None = None):
        """Call `function` if the budget has these seconds left; an exception becomes a line. None if nothing came."""
        named, failed = {"method": what} if what else {}, False
        if seconds > self.left:
            told = f"{what or ''} SKIPPED: {self.left:.0f} s left of {self.budget:.0f}, wants {seconds:.0f}"
            self.line(section, told, skipped="budget", wants_s=seconds, left_s=self.left, **named)
            return None
        try:
            return function()
        except Missing as error:
            self.line(section, f"{what or ''} SKIPPED: {error}", skipped=str(error), **named)
        except Exception as error:
            failed = True
            last = traceback.format_exc().strip().split("\n")[-8:]
            told = f"{what or ''} ERROR {type(error).__name__}: {error}".replace("\n", " ")
            self.line(section, told, error=f"{type(error).__name__}: {error}"[:500], traceback=last, **named)
        if failed:  # out here nothing holds the frames, and what they hold, any more
            self.device.free()
        return None


class Missing(Exception):
    """Something optional is not installed."""


def _plain(value):
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def environment(run: Run, label: str) -> None:
    """The first line: what everything below was measured on, and with."""

    def version(package):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    def output(*words):
        try:
            return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip() or None
        except (OSError, subprocess.SubprocessError):
            return None

    packages = ("torch", "triton", "diffusers", "transformers", "accelerate", "numpy", "cache-dit", "torchao")
    sources = hashlib.sha256()
    for path in sorted((ROOT / "src").rglob("*.py")):
        sources.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    sources, card = sources.hexdigest()[:16], {"device": "cpu (simulated)"}
    if run.device.cuda:
        known = torch.cuda.get_device_properties(0)
        card = {"device": known.name, "memory_gb": known.total_memory / 1e9, "sms": known.multi_processor_count}
        card |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        card["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        card["clocks"] = output("nvidia-smi", "--query-gpu=clocks.max.sm,power.limit", "--format=csv,noheader")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    commit = output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    told = f"{card['device']}, torch {versions['torch']}, commit {commit}, sources {sources}"
    known = {"commit": commit, "sources_sha256": sources, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    values = card | known | {"versions": versions, "label": label, "simulated": run.simulate, "budget_s": run.budget}
    run.line("environment", told, **values)
