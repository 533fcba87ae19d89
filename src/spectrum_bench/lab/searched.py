"""The steps at which a forecaster does best, for one model and number of passes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.lab.hindcast import compared, traced
from spectrum_bench.lab.search import IMPORTANCE, for_forecaster, starts
from spectrum_bench.lab.traces import halves, seeded
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.schedules import mask

Floats = NDArray[np.float64]


def find(model: Uncached, algorithm: Algorithm, jobs: Sequence[Job], passes: int) -> dict[str, Any]:
    """The mask whose real runs are nearest to the uncached ones, on half of the prompts; the candidates are found from
    traces of the other half, or have even and growing gaps.

    Raises:
        DoesNotFit: the forecast treats channels differently or depends on what a gate has seen.
    """
    if np.ndim(algorithm.forecaster(np.arange(3.0), 3.0)) != 1:
        raise DoesNotFit(
            f"algo={algorithm.name} has weights for each channel: its steps cannot be searched from traces"
        )
    jobs, T = seeded(jobs), model.num_steps
    references = traced(model, jobs, cost(len(jobs), passes, T), 0)
    (_, held_out), (of_known, of_held_out) = halves(jobs), halves(references)
    gram, matrix = np.mean([each.gram for each in of_known], axis=0), references[0].matrix
    networks = references[0].starts
    masks = {
        name: for_forecaster(gram, matrix, passes, importance, algorithm.forecaster, networks)
        for name, importance in IMPORTANCE.items()
    }
    masks |= dict(zip(("even", "growing", "quickly growing"), starts(T, passes, networks), strict=True))

    def at(steps: list[int]) -> Algorithm:
        return replace(algorithm, schedule=partial(mask, steps=steps))

    errors = compared(model, masks, at, held_out, of_held_out)
    best = min(errors, key=lambda name: errors[name])
    return {
        "passes": passes,
        "found_by": best,
        "held_out_errors_db": {name: round(error, 2) for name, error in errors.items()},
        "mask": masks[best],
    }


def cost(prompts: int, passes: int, T: int) -> int:
    """The network passes that `find` takes."""
    half = max(prompts // 2, 1)
    return prompts * T + (len(IMPORTANCE) + 3) * (prompts - half or prompts) * passes
