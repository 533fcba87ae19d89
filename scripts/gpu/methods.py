"""Spectrum's schedule and forecaster, and the gates' thresholds for random weights."""

from functools import partial

import numpy as np
from torch import Tensor

from gpu.models import Model
from spectrum_bench import decisions, distances, forecasters, gates, schedules
from spectrum_bench.caching.sites.stack import StackResidual
from spectrum_bench.signals import MODULATED


def growing(steps: int, flex: float):
    """Spectrum's own schedule as a mask: flex 0.75 computes 14 of 50 steps, 3.0 computes 10."""
    return partial(schedules.adaptive_window, window=2, flex=flex, warmup=5)


def spectrum_forecast(steps: int):
    return partial(forecasters.spectrum, degree=4, ridge=0.1, blend=0.5, steps=steps)


def recording(mask: np.ndarray, signals: tuple, kept: list, look):
    """A gate that follows a mask and keeps what another gate would decide by: random weights have thresholds of their
    own, so they are found from what these weights do."""

    @decisions.gate(observes=signals, state=gates.AccumulatedState)
    def recorded(step, T, seen, state):
        kept.append(look(seen, state))
        return bool(mask[step])

    return recorded()


def threshold(passes, wanted: int) -> float:
    """The threshold at which `passes(threshold)`, which falls with it, comes to `wanted`."""
    low, high = 0.0, 1.0
    while passes(high) > wanted and high < 1e9:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) > wanted else (low, middle)
    return high


def accumulated_passes(changes: list[float], limit: float) -> int:
    """How many steps TeaCache's gate would compute of these relative changes from step to step."""
    total, count = 0.0, 1
    for step, change in enumerate(changes[1:], 1):
        total += change
        if step == len(changes) - 1 or not total < limit:
            total, count = 0.0, count + 1
    return count


def first_block_passes(added: list[Tensor], limit: float) -> int:
    """How many steps the first-block gate would compute of what the first block added at each."""
    kept, count = added[0], 1
    for new in added[1:]:
        if not distances.distance(new, kept) < limit:
            kept, count = new, count + 1
    return count


def teacache(model: Model, steps: int, mask, wanted: int, times: int = 1) -> None:
    """TeaCache's gate at a threshold where it computes about `wanted` steps of these random weights."""
    changes: list[float] = []

    def look(seen, state):
        before, state.modulated = state.modulated, seen[MODULATED]
        return distances.relative_change(seen[MODULATED], before)

    gate = recording(mask(steps), (MODULATED,), changes, look)
    recorded = model.run.attempt(
        model.section,
        1.2 * wanted * (model.step_s or 1),
        lambda: model.sample(steps, gate, forecasters.reuse, StackResidual()),
        "teacache threshold",
    )
    if recorded is None:
        return
    first_branch = changes[:: len(changes) // steps]  # guidance may make two calls a step
    limit = threshold(partial(accumulated_passes, first_branch), wanted)
    gate = gates.accumulated(threshold=limit, polynomial=[1.0, 0.0], first=1, last=1)
    model.method("teacache", steps, gate, forecasters.reuse, StackResidual(), times)
