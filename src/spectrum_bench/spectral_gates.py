"""Gates that compare features by their spatial frequencies: SeaCache."""

import math
from dataclasses import dataclass

from torch import Tensor

from spectrum_bench.decisions import Seen, State, Steps, Threshold, gate
from spectrum_bench.distances import relative_change
from spectrum_bench.frequencies import on_grid, wiener
from spectrum_bench.signals import GRID, LATENT, NOISE, TOKENS


@dataclass
class SeaCacheState(State):
    total: float = 0.0
    filtered: Tensor | None = None  # of the step before
    skipped: int = 0  # steps in a row

    def add(self, x: Tensor, noise: Tensor) -> None:
        """Add the relative change of the filtered (B, *grid, C) tensor since the step before."""
        filtered = wiener(x, float(noise))
        change, self.filtered = relative_change(filtered, self.filtered), filtered
        self.total += change if math.isfinite(change) else math.inf


@gate(observes=(TOKENS, GRID, NOISE), state=SeaCacheState)
def seacache(
    step: int, T: int, seen: Seen, state: SeaCacheState, *, threshold: Threshold, first: Steps = 1, last: Steps = 1
) -> bool:
    """SeaCache (arXiv:2602.18993, alg. 1; jiwoogit/SeaCache@0a91c2b): compute when the relative changes of the first
    block's modulated tokens, each filtered for the noise of its step and summed since the last computed step, reach
    `threshold`. There is no polynomial. The code for Wan filters no token of the first steps, so that its first
    comparison is one of unlike tensors; that for HunyuanVideo filters all, as here.

    Args:
        first, last: how many steps at either end are computed in any case.
    """
    state.add(on_grid(seen[TOKENS], seen[GRID]), seen[NOISE])
    return _reached(state, threshold, first <= step < T - last)


@gate(observes=(LATENT, GRID, NOISE), state=SeaCacheState)
def seacache_latent(
    step: int,
    T: int,
    seen: Seen,
    state: SeaCacheState,
    *,
    threshold: Threshold,
    longest: Steps,
    first: Steps = 1,
    last: Steps = 1,
) -> bool:
    """SeaCache as diffusers 0.42.1 has it (hooks/sea_cache.py): the latent is filtered instead of the tokens, and at
    most `longest` steps are skipped in a row (0: any number)."""
    state.add(on_grid(seen[LATENT], seen[GRID]), seen[NOISE])
    return _reached(state, threshold, first <= step < T - last and not 0 < longest <= state.skipped)


def _reached(state: SeaCacheState, threshold: float, may_skip: bool) -> bool:
    if may_skip and state.total < threshold:
        state.skipped += 1
        return False
    state.total, state.skipped = 0.0, 0
    return True
