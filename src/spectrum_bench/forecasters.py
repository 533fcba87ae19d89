"""How to extrapolate: one function a paper, numbers in and numbers out.

A forecaster `weights(times, t, **constants)` gets the computed steps `times` (K,), ascending, and a later step t, and
returns K float64 weights: the feature at t is forecast as sum_k w_k h_k, by one weighted sum in features.py. Nothing
is ever fitted on the features themselves. One that treats channels differently returns (K, D). Times are step indices,
as in every official implementation.

A row that would get weight 0 at the step after the newest one is forgotten at once, and later calls do not see it.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.polynomial import chebyshev
from numpy.polynomial.hermite import hermval

Weights = Callable[[np.ndarray, float], np.ndarray]  # (times (K,), t) -> (K,) float64, or (K, D)


def reads_memory(forecaster: Weights) -> bool:
    """Whether a forecaster also wants, as `memory`, what its schedule's gate keeps."""
    return "memory" in inspect.signature(forecaster).parameters


def reuse(times: np.ndarray, t: float) -> np.ndarray:
    """The newest feature as it is (FORA, arXiv:2407.01425; TeaCache, arXiv:2411.19108)."""
    return np.eye(len(times))[-1]


def taylor(times: np.ndarray, t: float, *, order: int, warmup: int = 1) -> np.ndarray:
    """TaylorSeer (arXiv:2503.06923, eq. 7): finite-difference Taylor expansion round the newest computed step.

    The recursion of Shenyi-Z/TaylorSeer@288776d, run on unit vectors so that it yields the weights. As there,
    differences begin at the last of the `warmup` steps; until then, and with one point, it reuses.
    """
    x = t - times[-1]
    return sum(d * x**i / math.factorial(i) for i, d in enumerate(_differences(times, order, warmup)))


def _differences(times: np.ndarray, order: int, warmup: int) -> list[np.ndarray]:
    """Backward differences of the newest feature by order, each as weights, as far as there is history for them."""
    _order(order)
    factors = []
    for k, h in enumerate(np.eye(len(times))):
        previous, factors = factors, [h]
        if times[k] > warmup - 2:
            for i in range(min(order, len(previous))):
                factors.append((factors[i] - previous[i]) / (times[k] - times[k - 1]))
    return factors


def _order(order: int) -> None:
    if not (isinstance(order, int) and order >= 0):
        raise ValueError(f"order must be a whole number of at least 0, not {order}")


def chebyshev_ridge(times: np.ndarray, t: float, *, degree: int, ridge: float, steps: int) -> np.ndarray:
    """Spectrum's predictor (arXiv:2603.01623, eqs. 7-14): phi(tau) (Phi^T Phi + lambda I)^-1 Phi^T.

    `degree` M gives M + 1 Chebyshev polynomials; tau = 2 s / steps - 1 maps step s to [-1, 1] (the published code
    has 50 written in for `steps`). All coefficients are penalised, so the weights need not sum to 1.
    """
    if not (isinstance(degree, int) and degree >= 0):
        raise ValueError(f"degree (algo.m) must be a whole number of at least 0, not {degree}")
    if not (isinstance(ridge, (int, float)) and 0 < ridge < math.inf):
        raise ValueError(f"ridge (algo.lam) must be a number greater than 0, not {ridge}")
    tau = 2 * np.append(times, t) / steps - 1
    phi = chebyshev.chebvander(tau, degree)  # (K + 1, M + 1)
    Phi, phi_t = phi[:-1], phi[-1]
    return Phi @ np.linalg.solve(Phi.T @ Phi + ridge * np.eye(degree + 1), phi_t)


def spectrum(times: np.ndarray, t: float, *, degree: int, ridge: float, blend: float, steps: int) -> np.ndarray:
    """Spectrum (arXiv:2603.01623): w times the Chebyshev predictor, 1 - w times linear extrapolation.

    w = 1 is the paper's method; hanjq17/Spectrum@f7b7841 added the blend later and advises 0.5 <= w <= 1.
    """
    if not (isinstance(blend, (int, float)) and 0 <= blend <= 1):
        raise ValueError(f"blend (algo.w) must be a number in [0, 1], not {blend}")
    fit = chebyshev_ridge(times, t, degree=degree, ridge=ridge, steps=steps)
    return blend * fit + (1 - blend) * taylor(times, t, order=1)


def hermite(times: np.ndarray, t: float, *, order: int, sigma: float, warmup: int = 1) -> np.ndarray:
    """HiCache (arXiv:2508.16984): TaylorSeer with sigma^i H_i(sigma x) in place of x^i (H: physicists' Hermite).

    Our reading: its code was not at hand. sigma = sqrt(1/2) makes order 1 TaylorSeer's.
    """
    if not (isinstance(sigma, (int, float)) and 0 < sigma <= 1):
        raise ValueError(f"sigma (algo.sigma) must be a number in (0, 1], not {sigma}")
    x = t - times[-1]
    out = np.eye(len(times))[-1]
    for i, d in enumerate(_differences(times, order, warmup)[1:], 1):
        out = out + d * sigma**i * hermval(sigma * x, np.eye(i + 1)[i]) / math.factorial(i)
    return out


def lagrange(times: np.ndarray, t: float, *, order: int) -> np.ndarray:
    """The polynomial through the newest order + 1 features, whose derivatives TaylorSeer's differences stand for."""
    _order(order)
    w, newest = np.zeros(len(times)), range(max(0, len(times) - order - 1), len(times))
    for k in newest:
        w[k] = math.prod((t - times[j]) / (times[k] - times[j]) for j in newest if j != k)
    return w


def adams_bashforth(times: np.ndarray, t: float, *, order: int) -> np.ndarray:
    """Adams-Bashforth (the idea of PrediT, arXiv:2602.18093; no code is published): the rates (h_k - h_{k-1}) /
    (t_k - t_{k-1}), interpolated at the newest `order` points, are integrated from the newest of them to t."""
    _order(order)
    h = np.eye(len(times))
    order = min(order, len(times) - 1)
    if not order:
        return h[-1]
    rates = np.diff(h, axis=0)[-order:] / np.diff(times)[-order:, None]
    at, x = times[-order:] - times[-1], t - times[-1]
    coefficients = np.linalg.solve(np.vander(at, increasing=True), rates)  # of the interpolant, by power
    return h[-1] + sum(x ** (i + 1) / (i + 1) * c for i, c in enumerate(coefficients))


def foca(times: np.ndarray, t: float) -> np.ndarray:
    """FoCa (arXiv:2508.16211, eqs. 6-8): forecast by BDF2, calibrate by Heun with the newest computed slope.

    Our reading, step by step with unit steps and last differences as derivatives (no official code): each increment is
    the mean of the one before it and of the slope D between the two newest computed steps, in closed form
    F(s + j) = F(s) + j D + (d - D)(1 - 2^-j), d the step into s from what was forecast for s - 1.
    """
    rows = np.eye(len(times))
    F, D, d = rows[0], 0 * rows[0], 0 * rows[0]

    def ahead(j):
        return F + j * D + (d - D) * (1 - 0.5**j)

    for row, older, gap in zip(rows[1:], rows, np.diff(times), strict=False):
        before = ahead(gap - 1)
        F, D, d = row, (row - older) / gap, row - before
    return ahead(t - times[-1])


def aligned(times: np.ndarray, t: float, *, least: float, most: float, memory: dict | None = None) -> np.ndarray:
    """DiCache (arXiv:2508.17356, Bujiazi/DiCache): on the line through the two newest features, as far as the probe's
    residual P has come on its own way: gamma = mean|P - P1| / mean|P2 - P1|, within [least, most]. Not linear.

    `memory`: what the gate `dicache` keeps; without it as far as it may go.
    """
    if not (isinstance(least, (int, float)) and isinstance(most, (int, float)) and 1 <= least <= most):
        raise ValueError(f"algo.least and algo.most must be numbers, 1 <= least <= most, not {least} and {most}")
    if len(times) < 2:
        return np.eye(len(times))[-1]
    gamma = most
    if memory is not None:
        (P1, P2), P = memory["residuals"], memory["residual"]
        gamma = min(max(float((P - P1).abs().mean() / (P2 - P1).abs().mean()), least), most)
    return (1 - gamma) * np.eye(len(times))[-2] + gamma * np.eye(len(times))[-1]


# The families that HyCa chooses from, so far as they differ on evenly spaced steps: RK2, AB2 and the second-order
# Taylor expansion are one formula there, and so are AB1, BDF1 and the first-order one.
SOLVERS = {
    "reuse": reuse,
    "taylor1": partial(taylor, order=1),
    "taylor2": partial(taylor, order=2),
    "lagrange2": partial(lagrange, order=2),
    "adams_bashforth3": partial(adams_bashforth, order=3),
    "foca": foca,
}


def hyca(times: np.ndarray, t: float, *, solvers: Sequence[str], channels: Sequence[int]) -> np.ndarray:
    """HyCa's idea (arXiv:2510.04188; no code is published): channels that move alike share the solver which forecasts
    them best, chosen beforehand on uncached runs. (K, D) weights.

    Args:
        solvers: of SOLVERS, one a cluster of channels.
        channels: (D,) the cluster of each channel.

    Raises:
        ValueError: an unknown solver or cluster, or none of either for this model.
    """
    if not solvers or not channels:
        raise ValueError(
            "this model has no constants for hyca yet, and another model's channels are others: "
            "measure them with python src/calibrate.py algo=hyca model=<model>"
        )
    unknown = [name for name in solvers if name not in SOLVERS]
    if unknown or not set(channels) <= set(range(len(solvers))):
        raise ValueError(f"solvers must be of {', '.join(SOLVERS)}, and channels number them from 0")
    return np.stack([SOLVERS[name](times, t) for name in solvers], 1)[:, channels]
