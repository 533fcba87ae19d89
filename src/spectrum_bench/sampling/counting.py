"""Counts the cost of a sample: a few steps of the real pipeline run on the meta device (shapes.py), under the
algorithm's own site and forecaster, some of them computed and some skipped. What more steps would hold follows from the
mask."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrum_bench import schedules
from spectrum_bench.caching.algorithm import NOCACHE, Algorithm
from spectrum_bench.caching.branch import Branch
from spectrum_bench.caching.history import tensors
from spectrum_bench.caching.session import Session, denoisers
from spectrum_bench.caching.turns import takeovers
from spectrum_bench.caching.weights import Remembered
from spectrum_bench.decisions import Gate, Seen
from spectrum_bench.forecasters import Forecaster
from spectrum_bench.sampling.cost import Cost
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.on_card import weights_on_card
from spectrum_bench.sampling.sampler import Observer, Sampler
from spectrum_bench.sampling.settings import RunSettings
from spectrum_bench.sampling.shapes import Counted, meta_pipeline, networks, on_meta
from spectrum_bench.schedules import Mask, Starts, plan
from spectrum_bench.signals import OUTPUT

STEPS = (True, False, False, False, False, True, True)  # of a trial: whether they are computed
FAR, NEAR = 1e9, 0.0  # what a gate reads of its tensors where it shall compute, and where it shall skip


def count(settings: RunSettings, algorithm: Algorithm, job: Job, passes: int | None = None) -> Cost:
    """The cost of a sample, without weights and without a GPU.

    Args:
        passes: how many steps a gate computes, if that is known. A mask tells it by itself.

    Raises:
        UserError: the algorithm does not fit the model, or nothing is known of the model.
    """
    peer = algorithm.site is not None and algorithm.site.decides
    ours, T = NOCACHE if peer else algorithm, settings.num_inference_steps
    pipe = meta_pipeline(settings.model)  # without the IP-Adapter
    job = replace(job, inputs=tuple(each for each in job.inputs if each.name != "ip_adapter_image"))
    counted = Counted(pipe)
    trial = Trial(counted, ours, T)
    with torch.no_grad(), counted:
        with suppress(Enough):
            Sampler.of(pipe, trial.algorithm, settings).watch(job, [trial])
        starts = takeovers(pipe, denoisers(pipe), T)
        mask = plan(ours.schedule, T, starts)
        held = trial.cache_bytes(np.arange(T) < (passes or T) if mask is None else mask, starts)
    on_card, others = weights_on_card(pipe, settings.model)
    flops = [each // settings.runtime.batch_size for each in trial.flops]
    return Cost(
        full_step=flops[0],
        skipped_steps=None if peer or (ours.site is not None and ours.site.steps_differ) else flops[1:5],
        cache_bytes=None if peer else held,
        weights_bytes=on_card,
        working_bytes=trial.working_bytes,
        starts=list(starts),
        other_parts_bytes=others,
    )


class Enough(Exception):
    """The trial has seen all of its steps."""


class Trial(Observer):
    """The beginning of a sample, with a few computed and a few skipped steps.

    Attributes:
        algorithm: the algorithm, with a schedule that decides so.
        steps: whether each step is computed.
        flops: of each step.
        working_bytes: see Cost.
    """

    def __init__(self, counted: Counted, algorithm: Algorithm, T: int):
        self.counted, self.T = counted, T
        self.steps = STEPS[: 1 if algorithm.site is None else T]
        self.gate = algorithm.schedule if isinstance(algorithm.schedule, Gate) else None
        schedule: Any = schedules.full
        if self.gate is not None:
            schedule = Forced(self.gate.method, self.gate.constants, self)
        elif algorithm.site is not None:
            schedule = partial(schedules.mask, steps=np.flatnonzero(self.steps).tolist())
        self.algorithm = replace(algorithm, schedule=schedule)
        self.flops: list[int] = []
        self.working_bytes = 0
        self.seen: Seen = {}  # by the gate
        self.session: Session
        self._begun = 0  # operations before this step
        self._beside: dict[tuple[str, int], int] = {}  # the most bytes that are no row and not the gate's
        self._outside: list[int] = []  # bytes that are held outside all branches after each step

    def attach(self, pipe: Any, session: Session, undo: ExitStack) -> None:
        self.session = session
        for network in networks(pipe):
            on_meta(network, undo)

        def begin(*_: Any) -> None:
            self._expect(0)  # what came before was the text
            hook.remove()

        hook = next(iter(denoisers(pipe).values())).register_forward_pre_hook(begin)

    def _expect(self, step: int) -> None:
        """A step is about to run."""
        self._begun, self.counted.most = self.counted.flops, self.counted.held
        self.counted.answer = FAR if self.steps[step] else NEAR

    def step_done(self, session: Session, step: int, latents: Tensor) -> None:
        self.flops.append(self.counted.flops - self._begun)
        for key, branch in session.branches.items():
            rows = sum(history.bytes_with(len(history)) for history in branch.histories.values())
            beside = branch.nbytes - gate_bytes(branch) - rows
            self._beside[key] = max(beside, self._beside.get(key, 0))
        self._outside.append(sum(nbytes() for nbytes in session.held_elsewhere))
        if step == 0:
            held = self._outside[-1] + sum(branch.nbytes for branch in session.branches.values())
            self.working_bytes = max(0, self.counted.most - held)
        if step == len(self.steps) - 1:
            raise Enough
        self._expect(step + 1)

    def cache_bytes(self, mask: Mask, starts: Starts) -> int:
        """The most bytes at the end of a step of a sample with this mask. Of two networks by turns, the features of the
        first are held while the second computes its first step; both have features of one size."""
        rows_each = [most_rows(self.session.forecaster, part) for part in np.split(mask, starts[1:])]
        total, rows = 0, max([rows_each[-1], *(rows + 1 for rows in rows_each[:-1])])
        for key, branch in self.session.branches.items():
            total += self._beside[key]
            total += sum(history.bytes_with(rows) for history in branch.histories.values())
            if self.gate is not None:
                follows = self.gate.shared and key[1] > 0  # the first guidance branch of the step
                total += gate_bytes(branch) if follows else most_gate_bytes(self.gate, self.T, self.seen, self.counted)
        return total + self._most_outside(mask)

    def _most_outside(self, mask: Mask) -> int:
        """What is held outside the branches grows with every computed step, or with every step, by as much as with the
        last one of its kind."""
        grown = dict(zip(self.steps[1:], np.diff(self._outside).tolist(), strict=True))
        more = {kind: int((mask == kind).sum()) - self.steps.count(kind) for kind in grown}
        return self._outside[-1] + sum(more[kind] * grown[kind] for kind in grown)


@dataclass(frozen=True)
class Forced(Gate[Any]):
    """A gate that observes and remembers as ever, and decides as the trial wants."""

    trial: Trial

    def decide(self, step: int, seen: Seen, state: Any) -> bool:
        self.trial.seen = {**self.trial.seen, **seen}
        super().decide(step + self.trial.T // 2 if step else 0, seen, state)  # far from the ends, which it may compute
        return self.trial.steps[step]


def most_rows(forecaster: Forecaster, mask: Mask) -> int:
    """The most rows that are remembered of a history."""
    remembered = Remembered(forecaster)
    times: list[int] = []
    most = 0
    for step in np.flatnonzero(mask).tolist():
        remembered.append(times, step)
        most = max(most, len(times))
    return most


def most_gate_bytes(gate: Gate[Any], T: int, seen: Seen, counted: Counted) -> int:
    """The most bytes of a gate's state and of the output that it observes, if it computes every third of T steps.

    Args:
        seen: the signals, for their shapes.
    """
    state, most = gate.start(T), 0
    output: Tensor | None = None  # at the newest computed step
    for step in range(T):
        counted.answer = NEAR if step % 3 else FAR
        new = {signal: _again(tensor) for signal, tensor in seen.items()}
        known = {signal: tensor for signal, tensor in new.items() if signal is not OUTPUT}
        computing = gate.decide(step, known if output is None else known | {OUTPUT: output}, state)
        output = new.get(OUTPUT) if computing else output
        most = max(most, unique_bytes([output, state]))
    return most


def _again(tensor: Tensor) -> Tensor:
    """A new tensor of the same shape without values; whole numbers stay as they are."""
    return torch.empty_like(tensor, device="meta") if tensor.is_floating_point() else tensor


def gate_bytes(branch: Branch) -> int:
    return unique_bytes([branch.output, branch.state])


def unique_bytes(node: object) -> int:
    """Bytes of all tensors in a node, each of them once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors(node)}.values())
