"""How to extrapolate: one function a paper, numbers in and numbers out.

A forecaster `weights(times, t, **constants)` gets the computed steps `times` (K,), ascending, and a later step t, and
returns K float64 weights: the feature at t is forecast as sum_k w_k h_k, by one weighted sum in features.py. Nothing
is ever fitted on the features themselves. Times are step indices, as in every official implementation.

A row that would get weight 0 at the step after the newest one is forgotten at once, and later calls do not see it.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import chebyshev

Weights = Callable[[np.ndarray, float], np.ndarray]  # (times (K,), t) -> (K,) float64


def reuse(times: np.ndarray, t: float) -> np.ndarray:
    """The newest feature as it is (FORA, arXiv:2407.01425; TeaCache, arXiv:2411.19108)."""
    return np.eye(len(times))[-1]


def taylor(times: np.ndarray, t: float, *, order: int, warmup: int = 1) -> np.ndarray:
    """TaylorSeer (arXiv:2503.06923, eq. 7): finite-difference Taylor expansion round the newest computed step.

    The recursion of Shenyi-Z/TaylorSeer@288776d, run on unit vectors so that it yields the weights. As there,
    differences begin at the last of the `warmup` steps; until then, and with one point, it reuses.
    """
    if not (isinstance(order, int) and order >= 0):
        raise ValueError(f"order must be a whole number of at least 0, not {order}")
    factors = []
    for k, h in enumerate(np.eye(len(times))):
        previous, factors = factors, [h]
        if times[k] > warmup - 2:
            for i in range(min(order, len(previous))):
                factors.append((factors[i] - previous[i]) / (times[k] - times[k - 1]))
    x = t - times[-1]
    return sum(factor * x**i / math.factorial(i) for i, factor in enumerate(factors))


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
