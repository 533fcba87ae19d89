"""Weights against direct recursions on tensors, other implementations and exactness on polynomials."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from scipy.linalg import cho_factor, cho_solve

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.history import History

T = 50
SLOW = [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]
ALL = {
    "reuse": forecasters.reuse,
    "taylor1": partial(forecasters.taylor, order=1),
    "taylor2": partial(forecasters.taylor, order=2, warmup=5),
    "chebyshev": partial(forecasters.chebyshev_ridge, degree=4, ridge=0.1, steps=T),
    "spectrum": partial(forecasters.spectrum, degree=4, ridge=0.1, blend=0.5, steps=T),
    "hermite": partial(forecasters.hermite, order=2, sigma=0.5, warmup=5),
    "lagrange": partial(forecasters.lagrange, order=3),
    "adams": partial(forecasters.adams_bashforth, order=2),
    "foca": forecasters.foca,
    "aligned": partial(forecasters.aligned, least=1.0, most=1.5),
}
KEPT = {"reuse": 1, "taylor1": 2, "taylor2": 3, "chebyshev": 14, "spectrum": 14}  # most rows held at a time
KEPT |= {"hermite": 3, "lagrange": 4, "adams": 3, "foca": 11}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 14])
def test_one_weight_a_row_in_float64(name, count):
    w = ALL[name](np.array(SLOW[:count], float), SLOW[count - 1] + 1)
    assert w.shape == (count,) and w.dtype == np.float64 and np.isfinite(w).all()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_is_the_recursion_of_diffusers(order, rng):
    """diffusers' own state, from whose hook we take nothing: it starts differencing at the second update."""
    from diffusers.hooks.taylorseer_cache import TaylorSeerState

    state = TaylorSeerState(taylor_factors_dtype=torch.float64, max_order=order)
    H = torch.from_numpy(rng.standard_normal((len(SLOW), 3, 4)))
    done = []
    for step in range(T):
        state.current_step = step
        if step in SLOW:
            state.update((H[len(done)],))
            done.append(step)
            continue
        w = forecasters.taylor(np.array(done, float), step, order=order)
        ours = np.tensordot(w, H[: len(done)].numpy(), 1)
        np.testing.assert_allclose(ours, state.predict()[0].numpy(), rtol=1e-9, atol=1e-9)


def test_taylor_starts_as_the_published_code_does(rng):
    """Shenyi-Z/TaylorSeer@288776d with first_enhance 3: order 0 at steps 0 and 1, order 1 at 2, order 2 at the next."""

    def direct(H, order, enhance):
        previous, last, out = {}, None, None
        for k, step in enumerate(steps):
            factors = {0: H[k]}
            for i in range(order):
                if i in previous and step > enhance - 2:
                    factors[i + 1] = (factors[i] - previous[i]) / (step - last)
                else:
                    break
            previous, last = factors, step
            out = factors
        return out

    for count, highest in ((1, 0), (2, 0), (3, 1), (4, 2)):
        steps = [0, 1, 2, 7][:count]
        H = rng.standard_normal((count, 5))
        factors = direct(H, 2, 3)
        assert max(factors) == highest
        t = steps[-1] + 3
        expected = sum(f * 3.0**i / math.factorial(i) for i, f in factors.items())
        ours = forecasters.taylor(np.array(steps, float), t, order=2, warmup=3) @ H
        np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_taylor_two_on_a_uniform_grid_has_the_published_weights():
    N, r = 4, 0.75
    w = forecasters.taylor(np.array([0.0, 4, 8]), 8 + r * N, order=2)
    np.testing.assert_allclose(w, [r * r / 2, -(r + r * r), 1 + r + r * r / 2])


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("t", [5, 16, 49])
def test_spectrum_is_a_ridge_regression_by_cholesky(ridge, t, rng):
    """The paper's own way round: fit coefficients on the features, then evaluate."""
    times = np.array([s for s in SLOW if s < t], float)
    H = rng.standard_normal((len(times), 64))

    def phi(s):
        tau = np.atleast_1d(2 * s / T - 1)
        rows = [np.ones_like(tau), tau]
        for _ in range(3):
            rows.append(2 * tau * rows[-1] - rows[-2])
        return np.stack(rows, -1)

    Phi = phi(times)
    C = cho_solve(cho_factor(Phi.T @ Phi + ridge * np.eye(5)), Phi.T @ H)
    fit = (phi(float(t)) @ C)[0]
    linear = H[-1] + (t - times[-1]) / (times[-1] - times[-2]) * (H[-1] - H[-2])
    for blend in (1.0, 0.5, 0.0):
        w = forecasters.spectrum(times, t, degree=4, ridge=ridge, blend=blend, steps=T)
        np.testing.assert_allclose(w @ H, blend * fit + (1 - blend) * linear, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_polynomials_up_to_the_degree_are_reproduced_as_the_ridge_vanishes(degree, rng):
    coefficients = rng.standard_normal(degree + 1)

    def f(s):
        return chebyshev.chebval(2 * np.asarray(s) / T - 1, coefficients)

    times = np.array(SLOW[:8], float)
    errors = [
        abs(forecasters.chebyshev_ridge(times, 14, degree=degree, ridge=ridge, steps=T) @ f(times) - f(14))
        for ridge in (1e-2, 1e-6, 1e-10)
    ]
    assert errors[2] < 1e-4 and errors[2] < errors[0]
    assert abs(forecasters.taylor(times, 14, order=1) @ (3 * times - 1) - 41) < 1e-9


def test_weights_sum_to_one_where_the_method_keeps_constants():
    times = np.array(SLOW[:6], float)
    for name in ("reuse", "taylor1", "taylor2"):
        assert ALL[name](times, 9).sum() == pytest.approx(1)
    assert ALL["chebyshev"](times, 9).sum() < 0.99  # ridge shrinks the constant too


@pytest.mark.parametrize(
    "call",
    [
        partial(forecasters.taylor, order=-1),
        partial(forecasters.taylor, order=1.5),
        partial(forecasters.chebyshev_ridge, degree=-1, ridge=0.1, steps=T),
        partial(forecasters.chebyshev_ridge, degree=4, ridge=0.0, steps=T),
        partial(forecasters.spectrum, degree=4, ridge=0.1, blend=1.5, steps=T),
    ],
)
def test_senseless_constants_raise(call):
    with pytest.raises(ValueError, match="must"):
        call(np.array([0.0, 1.0]), 2.0)


def test_forgetting_rows_of_weight_zero_changes_no_forecast(rng):
    """A session keeps only what the next step would read; every later forecast must be the same as from all rows."""
    from spectrum_bench.caching.branch import Branch
    from spectrum_bench.caching.weights import Remembered

    for name in KEPT:
        forecaster = ALL[name]
        mask = schedules.adaptive_window(T, window=2, flex=0.75, warmup=5)
        branch = Branch(Remembered(forecaster))
        H, times, most = rng.standard_normal((T, 6)), [], 0
        for step in range(T):
            branch.begin(step, bool(mask[step]))
            if branch.computing:
                times.append(step)
                branch.store("x", torch.from_numpy(H[step]))
                most = max(most, len(branch.histories["x"]))
            else:
                expected = forecaster(np.array(times, float), step) @ H[times]
                np.testing.assert_allclose(branch.forecast("x").numpy(), expected, atol=1e-9)
        assert most == KEPT[name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_weighted_sum_accumulates_in_fp32(dtype):
    rows = [torch.randn(2, 300, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(14)]
    history = History()
    for row in rows:
        history.append(row)
    w = np.array([7.0 * (-1) ** i + 0.1 * i for i in range(14)])
    exact = sum(wi * row.double() for wi, row in zip(w, rows, strict=True))
    out = history.combine(w)
    assert out.dtype == dtype
    scale = sum(abs(wi) * row.double().abs() for wi, row in zip(w, rows, strict=True))
    unit = torch.finfo(dtype).eps
    assert ((out.double() - exact).abs() <= unit * exact.abs() + 14 * 2**-23 * scale).all()


def test_a_history_owns_its_memory_and_refuses_another_shape():
    whole = torch.randn(1, 80, 8)
    history = History()
    history.append(whole[:, 16:])
    assert history.features()[0].untyped_storage().nbytes() == history.nbytes == 64 * 8 * 4
    with pytest.raises(ValueError, match="changed"):
        history.append(torch.randn(1, 32, 8))


# ---------------------------------------------------------------------------------------------------------------------
# HiCache, Lagrange, Adams-Bashforth, FoCa, DiCache


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("chebyshev", "spectrum")])
def test_constants_are_kept(name):
    for count in range(1, len(SLOW)):
        for t in range(SLOW[count - 1] + 1, SLOW[count]):
            assert ALL[name](np.array(SLOW[:count], float), t).sum() == pytest.approx(1)


def test_hermite_by_hand():
    """sigma 0.5: x / 2 times the first difference, (x^2 / 4 - 1 / 2) / 2 times the second."""
    w = forecasters.hermite(np.array([0.0, 1.0, 2.0]), 5.0, order=2, sigma=0.5)
    first, second = np.array([0, -1, 1]), np.array([1, -2, 1])
    np.testing.assert_allclose(w, [0, 0, 1] + 1.5 * first + (9 / 4 - 1 / 2) / 2 * second)
    times = np.array(SLOW, float)
    same = forecasters.hermite(times, 49, order=1, sigma=math.sqrt(0.5))
    np.testing.assert_allclose(same, forecasters.taylor(times, 49, order=1))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_lagrange_is_exact_on_polynomials_of_its_degree(order, rng):
    polynomial = np.polynomial.Polynomial(rng.standard_normal(order + 1))
    times = np.array([0, 1, 4, 6, 11, 19], float)
    assert forecasters.lagrange(times, 23.0, order=order) @ polynomial(times) == pytest.approx(polynomial(23.0))


@pytest.mark.parametrize(
    "order,published", [(1, [2, -1]), (2, [5 / 2, -2, 1 / 2]), (3, [35 / 12, -13 / 4, 7 / 4, -5 / 12])]
)
def test_adams_bashforth_has_the_textbook_coefficients(order, published):
    """One interval ahead on uniform steps, newest first: y + h (3/2 f_n - 1/2 f_{n-1}), f by differences."""
    w = forecasters.adams_bashforth(np.arange(6.0) * 4, 24.0, order=order)
    np.testing.assert_allclose(w[::-1][: len(published)], published)
    assert not w[::-1][len(published) :].any()


def test_adams_bashforth_of_order_one_is_taylors():
    times = np.array(SLOW, float)
    w = forecasters.adams_bashforth(times, 49.0, order=1)
    np.testing.assert_allclose(w, forecasters.taylor(times, 49.0, order=1), atol=1e-12)


def test_foca_is_its_equations_step_by_step(rng):
    """Eqs. 6 to 8 of arXiv:2508.16211 on tensors, one unit step after the other, predicted values in the window."""
    H, full = rng.standard_normal((len(SLOW), 5)), None
    F = {}  # value at each step, computed or predicted
    for step in range(T):
        if step in SLOW:
            done = SLOW.index(step) + 1
            F[step] = H[done - 1]
            if done > 1:
                full = (H[done - 1] - H[done - 2]) / (SLOW[done - 1] - SLOW[done - 2])
            continue
        now, before = F[step - 1], F[step - 2]
        forecast = 4 / 3 * now - 1 / 3 * before + 2 / 3 * (now - before)  # eq. 7
        slope = (3 * forecast - 4 * now + before) / 2  # eq. 6
        F[step] = now + (full + slope) / 2  # eq. 8
        ours = forecasters.foca(np.array(SLOW[:done], float), float(step)) @ H[:done]
        np.testing.assert_allclose(ours, F[step], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("progress,gamma", [(0.5, 1.0), (1.25, 1.25), (4.5, 1.5), (None, 1.5)])
def test_aligned_goes_as_far_as_the_probe(progress, gamma):
    w = forecasters.aligned(np.array([0.0, 3.0, 7.0]), 9.0, least=1.0, most=1.5, progress=progress)
    np.testing.assert_allclose(w, [0, 1 - gamma, gamma])


@pytest.mark.parametrize(
    "make",
    [
        partial(forecasters.hermite, order=2, sigma=0),
        partial(forecasters.hermite, order=-1, sigma=0.5),
        partial(forecasters.lagrange, order=1.5),
        partial(forecasters.adams_bashforth, order=-1),
        partial(forecasters.aligned, least=0.5, most=1.5),
        partial(forecasters.aligned, least=2, most=1.5),
    ],
)
def test_more_senseless_constants_raise(make):
    with pytest.raises(ValueError, match="order must|sigma|least"):
        make(np.arange(4.0), 5.0)


# ---------------------------------------------------------------------------------------------------------------------
# HyCa: a solver a channel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_channel_follows_its_own_solver(dtype, rng):
    names, channels = ["taylor1", "reuse", "foca"], [2, 0, 0, 1, 2]
    times, H = (
        np.array([0.0, 1, 2, 4, 8]),
        [torch.from_numpy(rng.standard_normal((1, 3, 5))).to(dtype) for _ in SLOW[:5]],
    )
    history = History()
    for row in H:
        history.append(row)
    out = history.combine(forecasters.hyca(times, 11.0, solvers=names, channels=channels))
    assert out.dtype == dtype
    for d, cluster in enumerate(channels):
        w = forecasters.SOLVERS[names[cluster]](times, 11.0)
        expected = sum(wk * row[..., d].double() for wk, row in zip(w, H, strict=True))
        np.testing.assert_allclose(out[..., d].double(), expected, atol=3e-2 if dtype == torch.bfloat16 else 1e-5)


def test_rows_that_no_channel_reads_are_forgotten():
    from spectrum_bench.caching.branch import Branch
    from spectrum_bench.caching.weights import Remembered

    branch = Branch(Remembered(partial(forecasters.hyca, solvers=["taylor2", "reuse"], channels=[0, 1, 1])))
    for step in range(6):
        branch.begin(step, True)
        branch.store("x", torch.full((1, 2, 3), float(step) ** 2))
    assert len(branch.histories["x"]) == 3
    branch.begin(6, False)
    np.testing.assert_allclose(branch.forecast("x")[0, 0].numpy(), [25 + 9 + 1, 25, 25])


def test_a_mixture_of_other_channels_is_refused():
    call = partial(forecasters.hyca, np.arange(2.0), 3.0)
    for words in ({"solvers": None, "channels": None}, {"solvers": [], "channels": []}):
        with pytest.raises(ValueError, match="calibrate.py algo=hyca"):
            call(**words)
    for words in ({"solvers": ["euler"], "channels": [0]}, {"solvers": ["reuse"], "channels": [1]}):
        with pytest.raises(ValueError, match="solvers must be of"):
            call(**words)
    history = History()
    history.append(torch.zeros(1, 4, 8))
    history.append(torch.zeros(1, 4, 8))
    with pytest.raises(ValueError, match="do not fit"):
        history.combine(call(solvers=["taylor1"], channels=[0] * 4))


def test_hi_taylor_by_hand():
    """Steps 2 and 6: D = (h6 - h2) / 4, and 3 steps ahead sigma^2 x D = 0.75 D at sigma 0.5. Order 2 at steps 0, 2, 4:
    D' = (D - (h2 - h0) / 2) / 2, and at x = 2 the terms are (1/4) 2 D and (1/16) 2^2 / 2 D'."""
    first = forecasters.scaled_taylor(np.array([2.0, 6.0]), 9.0, order=1, sigma=0.5)
    np.testing.assert_allclose(first, [-0.75 / 4, 1 + 0.75 / 4])
    second = forecasters.scaled_taylor(np.array([0.0, 2.0, 4.0]), 6.0, order=2, sigma=0.5)
    D, D2 = np.array([0, -0.5, 0.5]), np.array([0.25, -0.5, 0.25])
    np.testing.assert_allclose(second, [0, 0, 1] + 0.5 * D + 0.125 * D2)
    with pytest.raises(ValueError, match="sigma .algo.sigma. must be a number in"):
        forecasters.scaled_taylor(np.array([0.0, 2.0]), 6.0, order=2, sigma=0)
