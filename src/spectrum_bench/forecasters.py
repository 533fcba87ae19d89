"""How to extrapolate: one function a paper, numbers in and numbers out.

A forecaster `weights(times, t, **constants)` gets the computed steps `times` (K,), ascending, and a later step t, and
returns K float64 weights. The forecast of the feature at t is sum_k w_k h_k, one weighted sum in caching/history.py.
Nothing is fitted on the features themselves. A forecaster that treats parts of a feature differently returns weights
that broadcast over it: (K, D) for channels, (K, 2, 1, 1) for the bands of site=bands. Times are step indices, as in
every official implementation.

The forgetting rule: a row is forgotten if it and all older rows have weight 0 one step after the newest row.
`Algorithm.check` refuses a forecaster that would read such a row later.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.polynomial.hermite import hermval
from numpy.typing import NDArray

from spectrum_bench import checks
from spectrum_bench.errors import BadValue

Floats = NDArray[np.floating[Any]]  # float64
Forecaster = Callable[..., Floats]  # (times (K,), t) -> (K,), or (K, ...)
HIGHEST = 100  # order or degree: factorials and powers of step numbers still fit float64
Weights = tuple[float, ...] | Floats  # K numbers, or (K, ...)


def numbers(weights: Weights) -> Weights:
    """(K,) weights as Python's own numbers, which a step reads without NumPy; (K, ...) weights as they are."""
    return weights if isinstance(weights, tuple) or weights.ndim > 1 else tuple(weights.tolist())


def forgotten(forecaster: Forecaster, times: list[int]) -> int:
    """How many of the oldest rows the forecast one step after the newest row does not read."""
    ahead = forecaster(np.array(times, float), times[-1] + 1)
    return int(ahead.reshape(len(ahead), -1).any(1).argmax())


def follows_gate(forecaster: Forecaster) -> bool:
    """Whether a forecaster also takes `progress`, a number that the gate's state gives at a skipped step."""
    return "progress" in inspect.signature(forecaster).parameters


def reuse(times: Floats, t: float) -> Floats:
    """The newest feature as it is (FORA, arXiv:2407.01425; TeaCache, arXiv:2411.19108)."""
    weights: Floats = np.eye(len(times))[-1]
    return weights


def hindsight(times: Floats, t: float) -> Floats:
    """Linear interpolation between computed steps, and the newest feature ahead of them."""
    weights: Floats = np.array([np.interp(t, times, unit) for unit in np.eye(len(times))])
    return weights


def taylor(times: Floats, t: float, *, order: int, warmup: int = 1) -> Floats:
    """TaylorSeer (arXiv:2503.06923, eq. 7): finite-difference Taylor expansion round the newest computed step.

    The recursion of Shenyi-Z/TaylorSeer@288776d, run on unit vectors so that it yields the weights. As there,
    differences begin at the last of the `warmup` steps; until then, and with one point, it reuses.
    """
    x = t - times[-1]
    terms = (d * x**i / math.factorial(i) for i, d in enumerate(_differences(times, order, warmup)))
    return sum(terms, start=np.zeros(len(times)))


def _differences(times: Floats, order: int, warmup: int) -> list[Floats]:
    """Backward differences of the newest feature by order, each as weights, as far as the history allows."""
    checks.whole("order", order, 0, HIGHEST)
    factors: list[Floats] = []
    for k, h in enumerate(np.eye(len(times))):
        previous, factors = factors, [h]
        if times[k] > warmup - 2:
            for i in range(min(order, len(previous))):
                factors.append((factors[i] - previous[i]) / (times[k] - times[k - 1]))
    return factors


def chebyshev_ridge(times: Floats, t: float, *, degree: int, ridge: float, steps: int) -> Floats:
    """Spectrum's predictor (arXiv:2603.01623, eqs. 7-14): phi(tau) (Phi^T Phi + lambda I)^-1 Phi^T.

    All coefficients are penalised, so the weights need not sum to 1.
    """
    checks.whole("degree (algo.m)", degree, 0, HIGHEST)
    if not (checks.is_number(ridge) and ridge > 0):
        raise BadValue(f"ridge (algo.lam) must be a number greater than 0, not {ridge}")
    phi = chebyshev_terms(np.append(times, t), degree=degree, steps=steps)  # (K + 1, M + 1)
    Phi, phi_t = phi[:-1], phi[-1]
    return Phi @ np.linalg.solve(Phi.T @ Phi + ridge * np.eye(degree + 1), phi_t)


def chebyshev_terms(times: Floats, *, degree: int, steps: int) -> Floats:
    """The M + 1 Chebyshev polynomials up to degree M at K steps, (K, M + 1). tau = 2 s / steps - 1 maps step s to
    [-1, 1]; the published code has 50 written in for `steps`."""
    terms: Floats = chebyshev.chebvander(2 * times / steps - 1, degree)
    return terms


def spectrum(times: Floats, t: float, *, degree: int, ridge: float, blend: float, steps: int) -> Floats:
    """Spectrum (arXiv:2603.01623): w times the Chebyshev predictor, 1 - w times linear extrapolation.

    w = 1 is the paper's method; hanjq17/Spectrum@f7b7841 added the blend later and advises 0.5 <= w <= 1.
    """
    if not (checks.is_number(blend) and 0 <= blend <= 1):
        raise BadValue(f"blend (algo.w) must be a number in [0, 1], not {blend}")
    fit = chebyshev_ridge(times, t, degree=degree, ridge=ridge, steps=steps)
    return blend * fit + (1 - blend) * taylor(times, t, order=1)


def hermite(times: Floats, t: float, *, order: int, sigma: float, warmup: int = 1) -> Floats:
    """HiCache (arXiv:2508.16984): TaylorSeer with sigma^i H_i(sigma x) in place of x^i (H: physicists' Hermite).

    As the authors' code in yiming-l21/CFGCache@bf339cb has it, whose launcher takes order 2, interval 7, first 3 and
    sigma 0.5. sigma = sqrt(1/2) makes order 1 TaylorSeer's.
    """
    _shrinks(sigma)
    x = t - times[-1]
    out: Floats = np.eye(len(times))[-1]
    for i, d in enumerate(_differences(times, order, warmup)[1:], 1):
        out = out + d * sigma**i * hermval(sigma * x, np.eye(i + 1)[i]) / math.factorial(i)
    return out


def scaled_taylor(times: Floats, t: float, *, order: int, sigma: float, warmup: int = 1) -> Floats:
    """Hi-Taylor, in HiCache's file (`taylor_scaled` in models/hicache_fast_impl.py of yiming-l21/RA-CFGCache@76359ee):
    TaylorSeer's term i times sigma^2i, which is TaylorSeer as far as sigma^2 x ahead."""
    _shrinks(sigma)
    return taylor(times, times[-1] + sigma**2 * (t - times[-1]), order=order, warmup=warmup)


def freqca(times: Floats, t: float, *, order: int, sigma: float, warmup: int = 1) -> Floats:
    """FreqCa (arXiv:2510.08669, Tammytcl/FreqCa@e0a4bf3 without `use_z_cache`): the low band is reused, the high band
    is forecast as HiCache does, with sigma 0.71 in the code. Returns (K, 2, 1, 1) weights for site=bands. Driven beside
    the code over 50 steps of a random walk, the forecasts differ by at most 2e-7 of the largest value (fp32)."""
    bands = [reuse(times, t), hermite(times, t, order=order, sigma=sigma, warmup=warmup)]
    weights: Floats = np.stack(bands, 1)[:, :, None, None]
    return weights


def l2p(times: Floats, t: float, *, outputs: Sequence[Sequence[float]] | None, steps: int, ridge: float) -> Floats:
    """L2P (arXiv:2604.26365): the weights of each step are those with the smallest mean squared error on uncached runs
    of this model, here in closed form, (V_K V_K^T + ridge I)^-1 V_K v_t, from the computed steps K alone.

    It bounds what a forecaster with one weight a row can do at this site: but for the ridge, no other has a smaller
    error on the traced samples. The authors' code (Aredstone/L2P-Cache@3df73ce) trains weights of one step from all
    before it by 201 steps of Adam, and applies them to its own forecasts too.

    Args:
        outputs: v_0 .. v_{T-1} as vectors that have the traced outputs' inner products, mean over prompts; v_s has its
            first s + 1 numbers, the others are 0.
        steps: T of this run.
        ridge: of the mean square of an output. The outputs of a cached run are not the traced ones, and large weights
            of opposite signs would multiply the difference.

    Raises:
        BadValue: this model has no constants, or they are for another number of steps.
    """
    measure = "python src/calibrate.py algo=l2p model=<model>"
    if not outputs:
        raise BadValue(f"this model has no constants for l2p yet: measure them with {measure}")
    if len(outputs) != steps:
        raise BadValue(
            f"the weights of l2p are fitted for num_inference_steps={len(outputs)}: {measure} "
            f"num_inference_steps={steps} fits others"
        )
    checks.number("ridge (algo.ridge)", ridge, 0)
    V = np.array([[*row, *[0.0] * (steps - len(row))] for row in outputs])
    V_K, v_t = V[times.astype(int)], V[min(int(t), steps - 1)]
    damped = V_K @ V_K.T + ridge * (V**2).sum(1).mean() * np.eye(len(times))
    weights: Floats = np.linalg.lstsq(damped, V_K @ v_t)[0]
    return weights


def _shrinks(sigma: object) -> None:
    if not (checks.is_number(sigma) and 0 < sigma <= 1):
        raise BadValue(f"sigma (algo.sigma) must be a number in (0, 1], not {sigma}")


def lagrange(times: Floats, t: float, *, order: int) -> Floats:
    """The polynomial through the newest order + 1 features, whose derivatives TaylorSeer's differences stand for."""
    checks.whole("order", order, 0, HIGHEST)
    w, newest = np.zeros(len(times)), range(max(0, len(times) - order - 1), len(times))
    for k in newest:
        w[k] = math.prod((t - times[j]) / (times[k] - times[j]) for j in newest if j != k)
    return w


def adams_bashforth(times: Floats, t: float, *, order: int) -> Floats:
    """Adams-Bashforth (the idea of PrediT, arXiv:2602.18093; no code is published): the rates (h_k - h_{k-1}) /
    (t_k - t_{k-1}), interpolated at the newest `order` points, are integrated from the newest of them to t."""
    checks.whole("order", order, 0, HIGHEST)
    h = np.eye(len(times))
    order = min(order, len(times) - 1)
    newest: Floats = h[-1]
    if not order:
        return newest
    rates = np.diff(h, axis=0)[-order:] / np.diff(times)[-order:, None]
    at, x = times[-order:] - times[-1], t - times[-1]
    coefficients = np.linalg.solve(np.vander(at, increasing=True), rates)  # of the interpolant, by power
    terms = (x ** (i + 1) / (i + 1) * c for i, c in enumerate(coefficients))
    return newest + sum(terms, start=np.zeros(len(times)))


def foca(times: Floats, t: float) -> Floats:
    """FoCa (arXiv:2508.16211, eqs. 6-8): forecast by BDF2, calibrate by Heun with the newest computed slope.

    Our reading, step by step with unit steps and last differences as derivatives (no official code); an independent
    reading, Golden-Path's lib/foca.py (paper_literal, recursive), gives the same numbers. A helper of that name in
    yiming-l21/CFGCache@96eec87, at every skipped step 7/6 of the newest computed feature less 1/6 of the older, has
    nothing of the paper's equations. Each increment is the mean of the one before it and of the slope D between the two
    newest computed steps, in closed form
    F(s + j) = F(s) + j D + (d - D)(1 - 2^-j), d the step into s from what was forecast for s - 1.
    """
    rows = np.eye(len(times))
    F: Floats = rows[0]
    D: Floats = 0 * rows[0]
    d: Floats = 0 * rows[0]

    def ahead(j: float) -> Floats:
        out: Floats = F + j * D + (d - D) * (1 - 0.5**j)
        return out

    for row, older, gap in zip(rows[1:], rows, np.diff(times), strict=False):
        before = ahead(gap - 1)
        F, D, d = row, (row - older) / gap, row - before
    return ahead(t - times[-1])


def aligned(times: Floats, t: float, *, least: float, most: float, progress: float | None = None) -> Floats:
    """DiCache (arXiv:2508.17356, Bujiazi/DiCache): a point on the line through the two newest features, as far along it
    as the probe's residual P has moved: gamma = mean|P - P1| / mean|P2 - P1|, within [least, most]. Not linear.

    `progress`: this quotient, from the state of the gate `dicache`; None gives `most`.
    """
    if not (checks.is_number(least) and checks.is_number(most) and 1 <= least <= most):
        raise BadValue(f"algo.least and algo.most must be numbers, 1 <= least <= most, not {least} and {most}")
    if len(times) < 2:
        return reuse(times, t)
    gamma = most if progress is None else min(max(progress, least), most)
    weights: Floats = (1 - gamma) * np.eye(len(times))[-2] + gamma * np.eye(len(times))[-1]
    return weights


# The solvers that HyCa chooses from, as far as they differ on evenly spaced steps: RK2, AB2 and the second-order Taylor
# expansion are the same formula there, and so are AB1, BDF1 and the first-order expansion.
SOLVERS: dict[str, Forecaster] = {
    "reuse": reuse,
    "taylor1": partial(taylor, order=1),
    "taylor2": partial(taylor, order=2),
    "lagrange2": partial(lagrange, order=2),
    "adams_bashforth3": partial(adams_bashforth, order=3),
    "foca": foca,
}


def hyca(times: Floats, t: float, *, solvers: Sequence[str], channels: Sequence[int]) -> Floats:
    """HyCa's idea (arXiv:2510.04188; no code is published): channels that move alike share one solver, the best on
    uncached runs. Returns (K, D) weights.

    Args:
        solvers: names in SOLVERS, one for each cluster of channels.
        channels: (D,) the cluster of each channel.

    Raises:
        BadValue: a solver or a cluster is unknown, or this model has no constants.
    """
    if not solvers or not channels:
        raise BadValue(
            "this model has no constants for hyca yet, and another model's channels are others: "
            "measure them with python src/calibrate.py algo=hyca model=<model>"
        )
    unknown = [name for name in solvers if name not in SOLVERS]
    if unknown or not set(channels) <= set(range(len(solvers))):
        raise BadValue(f"solvers must be of {', '.join(SOLVERS)}, and channels number them from 0")
    weights: Floats = np.stack([SOLVERS[name](times, t) for name in solvers], 1)[:, channels]
    return weights
