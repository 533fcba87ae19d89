"""Gates that look at features of the newest computed step: AdaCache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from spectrum_bench import checks
from spectrum_bench.decisions import Seen, State, Threshold, gate
from spectrum_bench.distances import distance
from spectrum_bench.errors import BadValue
from spectrum_bench.signals import GRID, MIDDLE


def _codebook(name: str, value: object) -> None:
    pairs = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    for pair in pairs or [None]:
        known = isinstance(pair, Sequence) and len(pair) == 2 and checks.is_number(pair[0])
        if not (known and checks.is_whole(pair[1]) and pair[1] >= 1):
            raise BadValue(f"{name} must be pairs of a distance and a number of steps, not {checks.brief(value)}")
    if pairs != sorted(pairs, key=lambda pair: float(pair[0])):
        raise BadValue(f"{name} must have growing distances, not {checks.brief(value)}")


@dataclass
class AdaCacheState(State):
    residual: Tensor | None = None  # of the newest computed step
    rate: int = 1  # steps from a computed step to the next
    computed: int = 0  # the newest computed step
    moreg: float = 1.0


@gate(observes=(MIDDLE, GRID), state=AdaCacheState)
def adacache(
    step: int,
    T: int,
    seen: Seen,
    state: AdaCacheState,
    *,
    codebook: Annotated[Sequence[tuple[float, int]], _codebook],
    threshold: Threshold = 1.0,
    motion: bool = True,
) -> bool:
    """AdaCache (arXiv:2411.02397, eqs. 4-8; the authors' code for Open-Sora): after a computed step the distance of the
    middle block's attention from that of the computed step before, per step and for clips times their motion, is looked
    up in a codebook: so many steps later the next one is computed. The first and the last two are computed in any case.

    Args:
        codebook: pairs of a distance and the number of steps below it; the last number holds for larger distances too.
        threshold: factor of all distances in the codebook, to reach a number of passes.
        motion: multiply by the motion between frames (MoReg).
    """
    residual = seen.get(MIDDLE)
    if residual is not None and residual is not state.residual:
        if state.residual is not None:
            c = distance(residual, state.residual) / state.rate
            if motion and seen[GRID].numel() == 3:
                c *= _regularize(state, frames_motion(residual, int(seen[GRID][0])), 0.1 * T <= step <= 0.9 * T)
            state.rate = next((steps for limit, steps in codebook if c < limit * threshold), codebook[-1][1])
        state.residual = residual
    if 0 < step < T - 2 and step < state.computed + state.rate:
        return False
    state.computed = step
    return True


def frames_motion(residual: Tensor, frames: int) -> float:
    """MoReg's motion of (B, L, D) tokens that lie frame by frame: |r_f - r_(f-1)| / (|r_f| + |r_(f-1)|), in sums."""
    after, before = residual[:, residual.shape[1] // frames :], residual[:, : -(residual.shape[1] // frames)]
    if not before.numel():
        return 0.0
    motion = (after - before).abs().sum() / (after.abs().sum() + before.abs().sum())
    return float(torch.nan_to_num(motion))


def _regularize(state: AdaCacheState, motion: float, within: bool) -> float:
    """MoReg: (motion / 0.385)^8, and how fast that changes; 1 outside the middle steps."""
    moreg = (motion / 0.385) ** 8 if within else 1.0
    change = 10 * abs(moreg - state.moreg) / state.rate
    state.moreg = moreg
    return moreg + change if math.isfinite(change) else math.inf
