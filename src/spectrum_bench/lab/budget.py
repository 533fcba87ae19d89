"""Search for the threshold at which a gate takes a given number of passes, to compare methods at equal cost."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Sampler
from spectrum_bench.sampling.settings import RunSettings


def search(passes: Callable[[float], float], target: float, low: float, high: float, tries: int) -> tuple[float, float]:
    """The value whose passes are nearest to `target`, and these passes, by bisection with the geometric mean.

    Args:
        passes: from a value to the passes of a sample; a larger value gives fewer passes.
    """
    tried = []
    for _ in range(tries):
        value = float(f"{math.sqrt(low * high):.3g}")
        if value in (low, high):
            break  # the passes jump over the target
        tried.append((value, passes(value)))
        if abs(tried[-1][1] - target) < 0.25:
            break
        low, high = (value, high) if tried[-1][1] > target else (low, value)
    return min(tried, key=lambda pair: abs(pair[1] - target))


def mean_passes(pipe: Any, algorithm: Algorithm, settings: RunSettings, jobs: Sequence[Job]) -> float:
    """The passes of a sample, mean over jobs."""
    sampler = Sampler.of(pipe, algorithm, settings)
    return sum(sampler.sample(job)[1].nfe for job in jobs) / len(jobs)
