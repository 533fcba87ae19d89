"""Methods that decide on the way are compared at equal cost: which threshold gives how many passes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Sampler
from spectrum_bench.sampling.settings import RunSettings


def search(passes: Callable[[float], float], target: float, low: float, high: float, tries: int) -> tuple[float, float]:
    """Bisection by the geometric mean: (value, passes) nearest to `target`, where passes fall as the value grows."""
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
    """Passes through the whole network that a sample takes, mean over jobs."""
    sampler = Sampler.of(pipe, algorithm, settings)
    return sum(sampler.sample(job)[1].nfe for job in jobs) / len(jobs)
