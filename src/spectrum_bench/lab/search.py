"""Which steps to compute: masks found from one Gram matrix, without running the network."""

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from spectrum_bench.forecasters import Forecaster, forgotten
from spectrum_bench.schedules import ALONE, Starts, power_law

Floats = NDArray[np.float64]
Importance = Callable[[Floats], Floats]  # from t / T in [0, 1] to a weight
Score = Callable[[list[int]], float]  # of a mask: the lower the better

JITTER = 1e-9  # of the mean diagonal: outputs of neighbouring steps are nearly equal
MEMORY = 2  # rows of a forecaster for which the best mask is found exactly; with more it takes minutes
# An error early in a sample is carried through all later network passes. How much it grows depends on the model; on the
# miniatures the ramp ranked random masks as well as measured sensitivities did.
IMPORTANCE: dict[str, Importance] = {
    "flat": np.ones_like,
    "ramp": lambda u: 1 + 10 * (1 - u) ** 2,
    "steep": lambda u: 1 + 30 * (1 - u) ** 4,
}


def search(T: int, passes: int, score: Score, networks: Starts = ALONE) -> list[int]:
    """The mask with the best score, by coordinate exchange: the best move of one computed step, until none helps, from
    several starts. The first step of each network stays computed."""
    return min((_exchanged(start, T, score, networks) for start in starts(T, passes, networks)), key=score)


def starts(T: int, passes: int, networks: Starts = ALONE) -> Iterable[list[int]]:
    """Even gaps, slowly growing ones and quickly growing ones."""
    for power in (1.0, 1.3, 1.8):
        yield np.flatnonzero(power_law(T, passes=passes, power=power, starts=networks)).tolist()


def _exchanged(steps: list[int], T: int, score: Score, networks: Starts) -> list[int]:
    best = score(steps)
    while True:
        free = sorted(set(range(1, T)) - set(steps))
        movable = [i for i, step in enumerate(steps) if step not in networks]
        moves = (sorted([*steps[:i], *steps[i + 1 :], t]) for i in movable for t in free)
        value, move = min(((score(move), move) for move in moves), default=(best, steps))
        if value >= best * (1 - 1e-9):
            return steps
        best, steps = value, move


# ---------------------------------------------------------------------------------------------------------------------
# For the best linear solver (Hindcast)


def for_solver(
    gram: Floats, matrix: Floats, passes: int, importance: Importance, networks: Starts = ALONE
) -> list[int]:
    """The mask with the smallest weighted error of `gap_errors`.

    Args:
        gram: (T + 1, T + 1) inner products of x_0, v_0 .. v_{T-1}, mean over prompts.
        matrix: the scheduler's, (T + 1, T + 1); see caching/propagation.py.
        networks: the first step of each network of those that run by turns.
    """
    T = len(gram) - 1
    weight = importance(np.arange(T + 1) / T)

    def score(steps: list[int]) -> float:
        return float((weight[[*steps[1:], T]] * gap_errors(gram, matrix, steps, networks)).sum())

    return search(T, passes, score, networks)


def normal_matrix(gram: Floats, rows: list[int]) -> Floats:
    """Of a least-squares fit by some rows of the basis, kept from being singular."""
    regularised: Floats = gram[np.ix_(rows, rows)] + JITTER * np.trace(gram) / len(gram) * np.eye(len(rows))
    return regularised


def gap_errors(gram: Floats, matrix: Floats, steps: list[int], networks: Starts = ALONE) -> Floats:
    """The squared error (N,) of the best linear solver step at the end of each of N gaps, if all outputs before it were
    the reference's own: |x_t|^2 - c^T G_K^-1 c, where c holds the inner products of x_t with x_0 and the outputs so
    far. For each network x_0 is the latent that it begins with, and the outputs are its own."""
    parts = zip(networks, [*networks[1:], len(gram) - 1], strict=True)
    return np.concatenate([_errors_of_one(gram, matrix, steps, start, end) for start, end in parts])


def _errors_of_one(gram: Floats, matrix: Floats, steps: list[int], start: int, end: int) -> Floats:
    """Of the network that runs from `start` to before `end`."""
    steps = [step for step in steps if start <= step < end]
    ends = [*steps[1:], end]
    rows = [0, *(1 + step for step in steps)]
    if start:  # the basis holds the latent before this step in the place of x_0
        basis = np.eye(len(gram))
        basis[0] = matrix[start]
        known, targets = normal_matrix(basis @ gram @ basis.T, rows), (basis @ gram @ matrix.T)[np.ix_(rows, ends)]
    else:
        known, targets = normal_matrix(gram, rows), (gram @ matrix.T)[np.ix_(rows, ends)]
    sizes = np.einsum("ti,ij,tj->t", matrix[ends], gram, matrix[ends])
    explained = np.cumsum(np.linalg.solve(np.linalg.cholesky(known), targets) ** 2, axis=0)
    errors: Floats = np.maximum(sizes - explained[np.arange(1, len(steps) + 1), np.arange(len(steps))], 0)
    return errors


# ---------------------------------------------------------------------------------------------------------------------
# For a forecaster


def for_forecaster(
    gram: Floats,
    matrix: Floats,
    passes: int,
    importance: Importance,
    forecaster: Forecaster,
    networks: Starts = ALONE,
) -> list[int]:
    """The mask with the smallest weighted sum of the errors that the forecasts of each gap make in the latent at its
    end, if all outputs before it were the reference's own. Exact where the forecaster reads at most MEMORY rows, else
    by coordinate exchange."""
    T, rows = len(gram) - 1, memory(forecaster, len(gram) - 1)
    weight = importance(np.arange(T + 1) / T)

    @cache
    def cost(known: tuple[int, ...], end: int) -> float:
        """Of the gap from the newest of the known computed steps to `end`."""
        error = np.zeros(T + 1)  # in x at `end`: weights of x_0 and the outputs
        for step in range(known[-1] + 1, end):
            forecast = forecaster(np.array(known, float), float(step))
            error[[1 + k for k in known]] += matrix[end, step + 1] * forecast
            error[step + 1] -= matrix[end, step + 1]
        return float(weight[end] * (error @ gram @ error))

    def score(steps: list[int]) -> float:
        total, known = 0.0, tuple[int, ...]()
        for step, end in zip(steps, [*steps[1:], T], strict=True):
            known = _with(known, step, rows, networks)
            total += cost(known, end)
        return total

    return exact(T, passes, rows, cost, networks) if rows <= MEMORY else search(T, passes, score, networks)


def _with(known: tuple[int, ...], step: int, rows: int, networks: Starts) -> tuple[int, ...]:
    """The newest `rows` computed steps of the network that runs at a computed step."""
    return (step,) if step in networks else (*known, step)[-rows:]


def exact(
    T: int, passes: int, rows: int, cost: Callable[[tuple[int, ...], int], float], networks: Starts = ALONE
) -> list[int]:
    """The mask with the smallest sum of costs, by dynamic programming over the newest `rows` computed steps.

    Args:
        cost: from a network's newest computed steps and the next one, or T, to the cost of the gap between them.
    """
    best: dict[tuple[int, ...], tuple[float, list[int]]] = {(0,): (0.0, [0])}
    for _ in range(passes - 1):
        longer: dict[tuple[int, ...], tuple[float, list[int]]] = {}
        for known, (value, steps) in best.items():
            next_network = min((start for start in networks if start > known[-1]), default=T - 1)
            for step in range(known[-1] + 1, next_network + 1):
                key, total = _with(known, step, rows, networks), value + cost(known, step)
                if key not in longer or total < longer[key][0]:
                    longer[key] = total, [*steps, step]
        best = longer
    ended = ((known, *found) for known, found in best.items() if known[-1] >= networks[-1])
    return min((value + cost(known, T), steps) for known, value, steps in ended)[1]


def memory(forecaster: Forecaster, T: int) -> int:
    """How many of the newest rows a forecast reads: those that are not forgotten after computing every second step."""
    times: list[int] = []
    for step in range(0, T, 2):
        times.append(step)
        del times[: forgotten(forecaster, times)]
    return len(times)
