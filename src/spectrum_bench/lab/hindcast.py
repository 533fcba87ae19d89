"""Hindcast: the coefficients of a linear multistep solver, fitted in closed form on a few prompts of one model.

For computed steps k_0 < ... < k_{N-1} and k_N = T each gap is one step

    x_{k_{j+1}} = a_j x_0 + sum_{i <= j} b_ji v_{k_i},

and (a_j, b_j) is the least-squares fit to the latents of uncached samples, gap after gap and in closed loop: the
outputs v are those at the latents that the fitted steps themselves have led to. The family is that of Bespoke
Non-Stationary solvers (arXiv:2403.01329), whose coefficients are trained by gradients.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.sites.solver import FittedSolver
from spectrum_bench.forecasters import reuse
from spectrum_bench.lab.finished import Finished
from spectrum_bench.lab.search import IMPORTANCE, for_solver
from spectrum_bench.lab.traces import Guided, Reference, Stop, Trace, flat, halves, seeded, trace
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Latents
from spectrum_bench.schedules import mask, power_law

Floats = NDArray[np.float64]
RIDGE = 1e-8  # of the mean diagonal of the normal equations


def algorithm(steps: Sequence[int], coefficients: Sequence[Sequence[float]]) -> Algorithm:
    return Algorithm("hindcast", partial(mask, steps=steps), reuse, FittedSolver(coefficients, steps))


def fit(
    model: Uncached,
    steps: list[int],
    jobs: Sequence[Job],
    traces: Sequence[Reference],
    finished: Finished | None = None,
) -> list[list[float]]:
    """The coefficients [a_j, b_j0 .. b_jj] of each gap. Takes N (N + 1) / 2 passes a prompt, less for gaps that are
    finished."""
    finished = finished or Finished()
    coefficients: list[list[float]] = []
    for gap in range(len(steps)):
        part = f"gap {gap} of steps {' '.join(map(str, steps))} on {len(jobs)} prompts"
        measure = partial(fit_gap, model, steps, coefficients, jobs, traces)
        coefficients.append(finished.once(part, len(jobs) * (gap + 1), measure))
    return coefficients


def fit_gap(
    model: Uncached,
    steps: list[int],
    coefficients: list[list[float]],
    jobs: Sequence[Job],
    traces: Sequence[Reference],
) -> list[float]:
    """The coefficients of the first gap that has none yet."""
    gap = len(coefficients)
    end = [*steps, model.num_steps][gap + 1]
    normal: list[Floats] = []
    right: list[Floats] = []
    for job, reference in zip(jobs, traces, strict=True):
        guided = Guided(last=steps[gap], anew=True)
        with suppress(Stop):
            model.sampler(algorithm(steps, coefficients)).watch(job, [guided])
        rows = np.array(guided.rows)
        normal.append(rows @ rows.T / rows.shape[1])
        right.append(rows @ reference.latents[end] / rows.shape[1])
    gram = np.sum(normal, axis=0)
    ridge = RIDGE * gram.diagonal().mean() * np.eye(len(gram))
    fitted: list[float] = np.linalg.solve(gram + ridge, np.sum(right, axis=0)).tolist()
    return fitted


def error_db(model: Uncached, found: Algorithm, jobs: Sequence[Job], traces: Sequence[Reference]) -> float:
    """The squared error of the last latent relative to its size, in dB, mean over prompts: the lower the better."""
    decibels = []
    for job, reference in zip(jobs, traces, strict=True):
        latents = Latents()
        model.sampler(found).watch(job, [latents])
        wrong = flat(latents.steps[-1]) - reference.latents[-1]
        decibels.append(20 * np.log10(np.linalg.norm(wrong) / np.linalg.norm(reference.latents[-1])))
    return float(np.mean(decibels))


def compared(
    model: Uncached,
    masks: Mapping[str, list[int]],
    method: Callable[[list[int]], Algorithm],
    jobs: Sequence[Job],
    traces: Sequence[Reference],
    finished: Finished | None = None,
) -> dict[str, float]:
    """The `error_db` of a method at each of some masks. A line is printed for each."""
    finished = finished or Finished()
    errors: dict[str, float] = {}
    for name, steps in masks.items():
        at, found = " ".join(map(str, steps)), method(steps)
        measure = partial(error_db, model, found, jobs, traces)
        errors[name] = finished.once(f"error at steps {at}", len(jobs) * len(steps), measure)
        print(f"{name}: {at}: error on held-out prompts {errors[name]:.2f} dB", flush=True)
    return errors


def candidates(traces: Sequence[Trace], passes: int) -> dict[str, list[int]]:
    """Masks to choose from: one searched for each kind of importance, and slowly growing gaps."""
    gram, matrix, starts = np.mean([each.gram for each in traces], axis=0), traces[0].matrix, traces[0].starts
    masks = {name: for_solver(gram, matrix, passes, importance, starts) for name, importance in IMPORTANCE.items()}
    return masks | {"power law": np.flatnonzero(power_law(len(matrix) - 1, passes=passes, starts=starts)).tolist()}


def calibrate(
    model: Uncached, jobs: Sequence[Job], passes: int, finished: Finished | None = None, given: Sequence[int] = ()
) -> dict[str, Any]:
    """The mask and the coefficients for a model: each candidate is fitted on one half of the prompts and measured on
    the other, and the best one is fitted on all. Each prompt has its own seed, the job's plus its index.

    Args:
        finished: gaps and errors that an earlier, killed calibration has measured. Its uncached samples are made anew.
        given: the mask, so that none is searched.
    """
    jobs, finished = seeded(jobs), finished or Finished()
    whole = cost(len(jobs), passes, model.num_steps, 1 if given else len(IMPORTANCE) + 1)
    traces = traced(model, jobs, whole, finished.passes)
    (known, held_out), (of_known, of_held_out) = halves(jobs), halves(traces)
    masks = {"given": list(given)} if given else candidates(of_known, passes)

    def fitted(steps: list[int]) -> Algorithm:
        return algorithm(steps, fit(model, steps, known, of_known, finished))

    errors = compared(model, masks, fitted, held_out, of_held_out, finished)
    best = min(errors, key=lambda name: errors[name])
    coefficients = fit(model, masks[best], jobs, traces, finished)
    return {
        "passes": passes,
        "importance": best,
        "held_out_error_db": round(errors[best], 2),
        "mask": masks[best],
        "coefficients": rounded(coefficients),
    }


def rounded(coefficients: Sequence[Sequence[float]]) -> list[list[float]]:
    """To nine digits, beyond float32."""
    return [[float(f"{value:.9g}") for value in row] for row in coefficients]


def traced(model: Uncached, jobs: Sequence[Job], cost: int, finished: int) -> list[Reference]:
    """The traces of the jobs. Prints what the measurement that begins with them takes: network passes at once, and
    minutes after the first sample.

    Args:
        cost: network passes of the whole measurement, of which some are finished.
    """
    goes_on = f", {finished} of them finished before" if finished else ""
    print(f"{len(jobs)} prompts: {cost} network passes in all{goes_on}", flush=True)
    begun = time.perf_counter()
    traces = [trace(model, jobs[0])]
    pace = (time.perf_counter() - begun) / model.num_steps
    left = pace * (cost - finished - model.num_steps) / 60
    print(f"about {left:.1f} minutes at {1000 * pace:.0f} ms a pass", flush=True)
    return traces + [trace(model, job) for job in jobs[1:]]


def cost(prompts: int, passes: int, T: int, masks: int) -> int:
    """The network passes that `calibrate` takes. Fewer, if masks are alike."""
    half = max(prompts // 2, 1)
    a_fit = passes * (passes + 1) // 2
    return prompts * T + masks * (half * a_fit + (prompts - half or prompts) * passes) + prompts * a_fit
