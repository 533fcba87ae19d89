"""What L2P's weights follow from (arXiv:2604.26365): the inner products of a model's outputs over the steps."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.sites.output import Output
from spectrum_bench.forecasters import l2p
from spectrum_bench.lab.hindcast import error_db, traced
from spectrum_bench.lab.traces import Trace, halves, seeded
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.schedules import power_law

JITTER = 1e-12  # of the mean diagonal: outputs of neighbouring steps are nearly equal
DIGITS = 7  # after the point, of vectors whose mean square is 1
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)


def calibrate(model: Uncached, jobs: Sequence[Job], passes: int) -> dict[str, Any]:
    """The guided outputs of uncached samples as `vectors`, from all prompts, and the ridge with which real runs are
    nearest to the uncached ones: on one half of the prompts, by weights from the other. Each prompt has its own seed,
    the job's plus its index. Both guidance branches take the weights of the guided output, which is a sum of theirs.

    Args:
        passes: of the runs that choose the ridge, by `power_law`.
    """
    jobs, T = seeded(jobs), model.num_steps
    passes = min(passes, T)
    half = len(halves(jobs)[1])
    traces = traced(model, jobs, len(jobs) * T + len(RIDGES) * half * passes, 0)
    (known, _), (_, held_out) = halves(traces), halves(jobs)
    outputs, references = vectors(known), halves(traces)[1]
    errors: dict[float, float] = {}
    for ridge in RIDGES:
        forecaster = partial(l2p, outputs=outputs, steps=T, ridge=ridge)
        algorithm = Algorithm("l2p", partial(power_law, passes=passes), forecaster, Output())
        errors[ridge] = round(error_db(model, algorithm, held_out, references), 2)
        print(f"ridge {ridge:g}: error on held-out prompts {errors[ridge]:.2f} dB", flush=True)
    best = min(errors, key=lambda ridge: errors[ridge])
    return {
        "passes": passes,
        "held_out_errors_db": {f"{ridge:g}": error for ridge, error in errors.items()},
        "ridge": best,
        "outputs": vectors(traces),
    }


def vectors(traces: Sequence[Trace]) -> list[list[float]]:
    """T vectors that have the guided outputs' inner products, mean over the traces, each in units of its mean square:
    the rows of a Cholesky factor, row s as its first s + 1 numbers."""
    grams = [each.gram[1:, 1:] for each in traces]
    gram = np.mean([each / each.diagonal().mean() for each in grams], axis=0)
    factor = np.linalg.cholesky(gram + JITTER * np.eye(len(gram)))
    return [[round(float(value), DIGITS) for value in row[: s + 1]] for s, row in enumerate(factor)]
