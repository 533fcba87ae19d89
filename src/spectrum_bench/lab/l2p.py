"""What L2P's weights follow from (arXiv:2604.26365): the inner products of a model's outputs over the steps."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from spectrum_bench.forecasters import Forecaster, l2p, reuse, taylor
from spectrum_bench.lab.hindcast import traced
from spectrum_bench.lab.replay import decibels, feature_errors, forecast
from spectrum_bench.lab.traces import Trace, halves, seeded
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.schedules import power_law

JITTER = 1e-12  # of the mean diagonal: outputs of neighbouring steps are nearly equal
DIGITS = 7  # after the point, of vectors whose mean square is 1
RIDGE = 1e-6  # as in configs/algo/l2p.yaml


def calibrate(model: Uncached, jobs: Sequence[Job], passes: int) -> dict[str, Any]:
    """The guided outputs of uncached samples as `vectors`, from all prompts. Each prompt has its own seed, the job's
    plus its index. Both guidance branches take the weights of the guided output, which is a sum of theirs.

    Args:
        passes: those of the error that is printed: of one half of the prompts, by weights from the other.
    """
    T = model.num_steps
    traces = [outputs_alone(each) for each in traced(model, seeded(jobs), len(jobs) * T, 0)]
    known, held_out = halves(traces)
    fitted = partial(l2p, outputs=vectors(known), steps=T, ridge=RIDGE)
    rows: dict[str, Forecaster] = {"l2p": fitted, "reuse": reuse, "taylor1": partial(taylor, order=1)}
    passes = min(passes, T)
    errors = {name: skipped_error_db(held_out, each, passes) for name, each in rows.items()}
    words = ", ".join(f"{name} {error:.2f} dB" for name, error in errors.items())
    print(f"error of the skipped outputs on held-out prompts, {passes} passes: {words}", flush=True)
    return {"held_out_error_db": round(errors["l2p"], 2), "outputs": vectors(traces)}


def outputs_alone(trace: Trace) -> Trace:
    """The trace with its outputs as its features, in units of their mean square, so that each prompt counts the
    same."""
    gram = trace.gram[1:, 1:]
    return replace(trace, features=gram / gram.diagonal().mean())


def vectors(traces: Sequence[Trace]) -> list[list[float]]:
    """T vectors that have the features' inner products, mean over the traces: the rows of a Cholesky factor, row s as
    its first s + 1 numbers."""
    gram = np.mean([each.features for each in traces if each.features is not None], axis=0)
    factor = np.linalg.cholesky(gram + JITTER * np.eye(len(gram)))
    return [[round(float(value), DIGITS) for value in row[: s + 1]] for s, row in enumerate(factor)]


def skipped_error_db(traces: Sequence[Trace], forecaster: Forecaster, passes: int) -> float:
    """The squared error of the skipped outputs relative to their size, in dB, mean over steps and prompts, if the
    computed ones were the uncached run's."""
    computed = power_law(len(traces[0].matrix) - 1, passes=passes)
    if computed.all():
        return -np.inf
    steps = np.flatnonzero(computed).tolist()
    errors = feature_errors(traces, forecast(forecaster, steps, len(computed)))
    return float(decibels(errors[:, ~computed].mean()))
