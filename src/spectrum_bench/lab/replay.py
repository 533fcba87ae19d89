"""Replay of a mask and a linear forecaster from traces, without the network.

If every output that a method has cached were the uncached run's own, its latents would be sums of x_0 and these
outputs, and their errors follow from a trace. A real run differs: its outputs are those at its own latents.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.sites.corrected import Corrected, revised
from spectrum_bench.caching.sites.solver import Solver, estimates
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.forecasters import Forecaster, reuse, taylor
from spectrum_bench.lab.search import IMPORTANCE, for_solver, normal_matrix
from spectrum_bench.lab.traces import Trace
from spectrum_bench.schedules import ALONE, Starts

Floats = NDArray[np.float64]
Assumed = Callable[[int], Floats]  # from t to (T, T): weights of the real outputs in what is assumed before step t


def assumed_by(algorithm: Algorithm, steps: Sequence[int], T: int, starts: Starts = ALONE) -> Assumed:
    """What an algorithm with these computed steps assumes of every step's output, where networks begin at `starts`.

    Raises:
        DoesNotFit: nobody can tell: its forecast is not linear with weights that follow from the steps, or other
            people's code makes it.
    """
    site, forecaster = algorithm.site, algorithm.forecaster
    if site is None or site.decides or np.ndim(forecaster(np.arange(3.0), 3.0)) != 1:
        raise DoesNotFit(f"algo={algorithm.name} has no weights that follow from its steps alone")
    if isinstance(site, Solver):
        return by_solver(forecaster, steps, T, starts)
    strength = site.strength if isinstance(site, Corrected) else 0.0
    return forecast(forecaster, steps, T, strength, starts)


def forecast(
    forecaster: Forecaster, steps: Sequence[int], T: int, strength: float = 0.0, starts: Starts = ALONE
) -> Assumed:
    """Skipped outputs are forecast from their network's computed ones before them, and revised with `strength` when its
    next one is computed."""
    ahead, times = np.eye(T), np.array(steps)
    for step in sorted(set(range(T)) - set(steps)):
        known = times[(times < step) & (times >= max(start for start in starts if start <= step))]
        ahead[step] = 0
        ahead[step, known] = forecaster(known.astype(float), float(step))

    def assumed(t: int) -> Floats:
        weights = np.eye(T)
        for before, behind in zip(steps, steps[1:], strict=False):
            if behind < t and behind not in starts:
                weights = revised(weights, before, behind, strength)
        return weights @ ahead

    return assumed


def by_solver(forecaster: Forecaster, steps: Sequence[int], T: int, starts: Starts = ALONE) -> Assumed:
    """All outputs are estimated anew from the computed ones so far; see caching/sites/solver.py."""

    def assumed(t: int) -> Floats:
        known = [step for step in steps if step < t]
        weights = np.zeros((T, T))
        weights[:, known] = estimates(forecaster, known, T, starts)
        return weights

    return assumed


def latent_errors(traces: Sequence[Trace], assumed: Assumed) -> Floats:
    """(P, T) squared errors of the latents after each step, relative to the latent's own square."""
    sizes = traces[0].matrix[1:]
    T = len(sizes)
    missing = [np.append(0, sizes[t - 1, 1:] @ (np.eye(T) - assumed(t))) for t in range(1, T + 1)]
    errors: Floats = np.array([_squares(missing, each.gram) / _squares(sizes, each.gram) for each in traces])
    return np.maximum(errors, 0)


def _squares(rows: Sequence[Floats] | Floats, gram: Floats) -> Floats:
    """The square of each row's sum of what `gram` holds the inner products of."""
    squares: Floats = np.einsum("ti,ij,tj->t", rows, gram, rows)
    return squares


def feature_errors(traces: Sequence[Trace], assumed: Assumed) -> Floats:
    """(P, T) squared errors of the traced site's features as each step used them, relative to the feature's square.

    Raises:
        DoesNotFit: the traces have no features.
    """
    grams = [each.features for each in traces if each.features is not None]
    if len(grams) < len(traces):
        raise DoesNotFit("these traces have no features: make them anew with algo= and site=")
    T = len(grams[0])
    missing = np.stack([(np.eye(T) - assumed(step + 1))[step] for step in range(T)])
    errors: Floats = np.array([_squares(missing, each) / each.diagonal() for each in grams])
    return np.maximum(errors, 0)


def beside(algorithm: Algorithm, steps: Sequence[int], traces: Sequence[Trace]) -> dict[str, Floats]:
    """(P, T) relative squared errors of the latents, of the algorithm and of others at the same steps; (P,) of the last
    latent for what could be reached there."""
    T, starts = len(traces[0].matrix) - 1, traces[0].starts
    rows: dict[str, Assumed] = {
        algorithm.name: assumed_by(algorithm, steps, T, starts),
        "reuse": forecast(reuse, steps, T, starts=starts),
        "linear extrapolation": forecast(partial(taylor, order=1), steps, T, starts=starts),
        "reuse, corrected": forecast(reuse, steps, T, 1.0, starts),
    }
    errors = {name: latent_errors(traces, assumed) for name, assumed in rows.items()}
    return errors | {f"best linear step, {name}": each for name, each in bounds(traces, steps).items()}


def decibels(errors: Floats) -> Floats:
    """Relative squared errors in dB; -200 stands for none."""
    out: Floats = 10 * np.log10(np.maximum(errors, 1e-20))
    return out


# ---------------------------------------------------------------------------------------------------------------------
# What could be reached


def bounds(traces: Sequence[Trace], steps: Sequence[int]) -> dict[str, Floats]:
    """Relative squared errors of the last latent, (P,), of the best linear step from x_0 and the computed outputs: with
    one set of weights for all prompts, with each prompt's own, and with each prompt's own steps too. The last two need
    to know the uncached sample."""
    mean, matrix = np.mean([each.gram for each in traces], axis=0), traces[0].matrix
    shared = np.array([_last_error(each.gram, mean, matrix, steps) for each in traces])
    own = np.array([_last_error(each.gram, each.gram, matrix, steps) for each in traces])
    masks = [for_solver(each.gram, matrix, len(steps), IMPORTANCE["ramp"], each.starts) for each in traces]
    free = [_last_error(each.gram, each.gram, matrix, mask) for each, mask in zip(traces, masks, strict=True)]
    return {"one set of weights": shared, "own weights (oracle)": own, "own weights and steps (oracle)": np.array(free)}


def _last_error(gram: Floats, fitted: Floats, matrix: Floats, steps: Sequence[int]) -> float:
    """The relative squared error of the last latent of a sample with `gram`, by the weights that are best for a sample
    with `fitted`."""
    rows, target = [0, *(1 + step for step in steps)], matrix[-1]
    error = -target
    error[rows] += np.linalg.solve(normal_matrix(fitted, rows), (fitted @ target)[rows])
    return float(max(error @ gram @ error, 0) / (target @ gram @ target))
