"""What a skipped step costs at full size, counted on the meta device without a GPU, as the table of docs/costs.md:

    python tests/bench/skipped_steps.py                      # all, a few minutes
    python tests/bench/skipped_steps.py flux fora,spectrum   # one model, some methods
    python tests/bench/skipped_steps.py flux gates           # the methods that decide on the way

The step is the second of a gap, with 9 computed ones before it. A forecast counts as the one kernel that it is on
a GPU.
"""

import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
from helpers import settings
from torch import Tensor
from torch.utils._pytree import tree_leaves

from spectrum_bench import schedules
from spectrum_bench.caching import history
from spectrum_bench.commands.compose import build
from spectrum_bench.decisions import Gate, Seen
from spectrum_bench.sampling.counting import Enough
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Observer, Sampler
from spectrum_bench.sampling.shapes import CPU, Counted, aten, meta_pipeline, networks, on_meta
from spectrum_bench.signals import NOISE

COMPUTED, STEP, T = (0, 1, 2, 3, 4, 6, 8, 11, 14), 16, 32  # far from the end, which gates compute
METHODS = {  # by the name in the table
    "spectrum": ["algo=spectrum"],
    "fora": ["algo=fora"],
    "taylorseer": ["algo=taylorseer", "algo.order=2", "site=modules"],
}
GATES = {  # whose constants are not measured for these models: any others cost the same
    "teacache": ["algo=teacache", "schedule.polynomial=[1,0]"],
    "magcache": ["algo=magcache", "schedule.ratios=[1,1]"],
    "sencache": ["algo=sencache", "schedule.timesteps=[1,0]", "schedule.latent=[1,1]", "schedule.time=[1,1]"],
    **{
        name: [f"algo={name}"]
        for name in ("fbcache", "easycache", "dicache", "cgtaylor", "speca", "seacache", "adacache")
    },
}
MODELS = ("flux", "sd3-5", "wan14b", "hunyuan")


class Kernels(Counted):
    """Counts kernels, the bytes that they move, and the numbers that the host waits for.

    Attributes:
        kernels: operations on the denoiser's device that write at least one element; views start none.
        moved: bytes of their inputs and outputs.
        syncs: numbers and tensors that the host read from the device.
    """

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        self.kernels, self.moved, self.syncs = 0, 0, 0
        self.within = False  # a kernel that this counts as one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        read = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if func is aten._local_scalar_dense.default:
            self.syncs += args[0].is_meta
        elif func is aten._to_copy.default and args[0].is_meta and written[0].device == CPU:
            self.syncs += 1
        elif not self.within and all(t.is_meta for t in [*read.values(), *written]) and not _free(func, written):
            self.kernels += 1
            self.moved += sum(t.nbytes for t in [*read.values(), *written])
        return out

    def forecast(self, rows: Any, weights: Any) -> Tensor:
        """In place of `history.weighted_sum`: the one kernel of caching/kernels.py, which reads each row once."""
        self.within = True
        try:
            total = weighted_sum(rows, weights)
        finally:
            self.within = False
        self.kernels += 1
        self.moved += sum(row.nbytes for row in [*rows, total])
        return total


weighted_sum = history.weighted_sum


def _free(func: Any, written: list[Tensor]) -> bool:
    """Whether an operation starts no kernel: it makes a view or memory that nobody has written to, or no elements."""
    schema, empty = func._schema, not any(t.numel() for t in written)
    aliases = [part.alias_info for part in schema.returns if part.alias_info is not None]
    view = bool(aliases) and not any(alias.is_write for alias in aliases)
    return empty or view or func in (aten._unsafe_view.default, aten.lift_fresh.default) or "empty" in schema.name


class Look(Observer):
    """Counts the steps apart."""

    def __init__(self, counted: Kernels):
        self.counted, self.steps = counted, []

    def attach(self, pipe, session, undo: ExitStack) -> None:
        for network in networks(pipe):
            on_meta(network, undo)

    def step_done(self, session, step, latents) -> None:
        counted = self.counted
        self.steps.append((counted.kernels, counted.moved, counted.syncs, counted.flops))
        if step == STEP:
            raise Enough


@dataclass(frozen=True)
class Decided(Gate[Any]):
    """A gate that reads its signals as ever, and computes the steps of COMPUTED. The pipeline's own tensors lie on the
    device on a GPU, but for the scheduler's noise levels."""

    def decide(self, step: int, seen: Seen, state: Any) -> bool:
        on_device = {s: t for s, t in seen.items() if s is not NOISE and t.is_floating_point() and not t.is_meta}
        super().decide(step, seen | {s: torch.empty_like(t, device="meta") for s, t in on_device.items()}, state)
        return step in COMPUTED


def skipped_step(model: str, words: list[str]) -> list[float]:
    """Kernels, bytes, syncs and floating-point operations of the step."""
    given = settings(f"model={model}", f"num_inference_steps={T}", *words)
    algorithm, pipe = build(given), meta_pipeline(given.model)
    schedule: Any = partial(schedules.mask, steps=list(COMPUTED))
    if isinstance(algorithm.schedule, Gate):
        schedule = Decided(algorithm.schedule.method, algorithm.schedule.constants)
    algorithm = replace(algorithm, schedule=schedule)
    counted = Kernels(pipe)
    look = Look(counted)
    with torch.no_grad(), counted, patch.object(history, "weighted_sum", counted.forecast), suppress(Enough):
        Sampler.of(pipe, algorithm, given).watch(Job("one", 0, "a ring", 0), [look])
    return [now - before for now, before in zip(look.steps[-1], look.steps[-2], strict=True)]


def main(argv: list[str]) -> None:
    models = argv[0].split(",") if argv else MODELS
    known = METHODS | GATES
    methods = list(METHODS) if len(argv) < 2 else list(GATES) if argv[1] == "gates" else argv[1].split(",")
    print("| model | method | kernels | GB moved | syncs | TFLOPs |\n|---|---|--:|--:|--:|--:|", flush=True)
    for model in models:
        for method in methods:
            kernels, moved, syncs, flops = skipped_step(model, known[method])
            print(f"| {model} | {method} | {kernels} | {moved / 1e9:.2f} | {syncs} | {flops / 1e12:.3f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
