"""Which steps to compute: masks found from one Gram matrix, without running the network."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from spectrum_bench.schedules import power_law

Floats = NDArray[np.float64]
Importance = Callable[[Floats], Floats]  # from t / T in [0, 1] to a weight

JITTER = 1e-9  # of the mean diagonal: outputs of neighbouring steps are nearly equal
# An error early in a sample is carried through all later network passes. How much it grows depends on the model; on the
# miniatures the ramp ranked random masks as well as measured sensitivities did.
IMPORTANCE: dict[str, Importance] = {
    "flat": np.ones_like,
    "ramp": lambda u: 1 + 10 * (1 - u) ** 2,
    "steep": lambda u: 1 + 30 * (1 - u) ** 4,
}


def search(gram: Floats, matrix: Floats, passes: int, importance: Importance) -> list[int]:
    """The mask with the smallest weighted error of `gap_errors`, by coordinate exchange: the best move of one computed
    step, until none helps, from several starts.

    Args:
        gram: (T + 1, T + 1) inner products of x_0, v_0 .. v_{T-1}, mean over prompts.
        matrix: the scheduler's, (T + 1, T + 1); see caching/propagation.py.
    """
    T = len(gram) - 1
    weight = importance(np.arange(T + 1) / T)

    def score(steps: list[int]) -> float:
        return float((weight[[*steps[1:], T]] * gap_errors(gram, matrix, steps)).sum())

    return min((_exchanged(list(start), T, score) for start in starts(T, passes)), key=score)


def starts(T: int, passes: int) -> Iterable[list[int]]:
    """Even gaps, slowly growing ones and quickly growing ones."""
    for power in (1.0, 1.3, 1.8):
        yield np.flatnonzero(power_law(T, passes=passes, power=power)).tolist()


def _exchanged(steps: list[int], T: int, score: Callable[[list[int]], float]) -> list[int]:
    best = score(steps)
    while True:
        free = sorted(set(range(1, T)) - set(steps))
        moves = (sorted([*steps[:i], *steps[i + 1 :], t]) for i in range(1, len(steps)) for t in free)
        value, move = min(((score(move), move) for move in moves), default=(best, steps))
        if value >= best * (1 - 1e-9):
            return steps
        best, steps = value, move


def gap_errors(gram: Floats, matrix: Floats, steps: list[int]) -> Floats:
    """The squared error (N,) of the best linear solver step at the end of each of N gaps, if all outputs before it were
    the reference's own: |x_t|^2 - c^T G_K^-1 c, where c holds the inner products of x_t with x_0 and the outputs so
    far."""
    T = len(gram) - 1
    ends = [*steps[1:], T]
    rows = [0, *(1 + step for step in steps)]
    known = gram[np.ix_(rows, rows)] + JITTER * np.trace(gram) / len(gram) * np.eye(len(rows))
    targets = (gram @ matrix.T)[np.ix_(rows, ends)]
    sizes = np.einsum("ti,ij,tj->t", matrix[ends], gram, matrix[ends])
    explained = np.cumsum(np.linalg.solve(np.linalg.cholesky(known), targets) ** 2, axis=0)
    errors: Floats = np.maximum(sizes - explained[np.arange(1, len(steps) + 1), np.arange(len(steps))], 0)
    return errors
