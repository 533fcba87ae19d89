"""RACER's shrinkage: its trust by hand, and the forecasts it stands between."""

from functools import partial

import pytest
import torch
from helpers import MASK, TAYLOR, run

from spectrum_bench import forecasters
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.caching.sites.trusted import Trusted, trust
from spectrum_bench.errors import BadValue

CHEBYSHEV = partial(forecasters.spectrum, degree=4, ridge=0.1, blend=1.0, steps=6)


@pytest.mark.parametrize("q,x,kappa", [(10.0, 1, 0.7310586), (7.5, 1, 0.5), (7.5, 3, 0.5 * 0.5488116)])
def test_trust_by_hand(q, x, kappa):
    """p = 10, theta 0.25: q = 10 has risk 0, sigmoid(1); q = 7.5 has risk 0.25, sigmoid(0); exp(-0.3 2) = 0.5488."""
    measured = trust(Trusted(theta=0.25, decay=0.3), torch.full((1, 4, 3), 10.0), torch.full((1, 4, 3), q), x)
    assert float(measured) == pytest.approx(kappa)


def test_each_sample_of_a_batch_has_its_own_trust():
    p, q = torch.full((2, 4, 3), 10.0), torch.stack([torch.full((4, 3), 10.0), torch.full((4, 3), 7.5)])
    assert trust(Trusted(), p, q, 1).flatten().tolist() == pytest.approx([0.7310586, 0.5])


@pytest.mark.parametrize("name", ["flux", "sdxl", "wan"])
def test_full_trust_is_the_forecast_and_less_is_neither_it_nor_reuse(random_pipes, no_gradients, name):
    pipe = random_pipes(name)
    whole, _ = run(pipe, name, LastBlock(), MASK, CHEBYSHEV)
    reused, _ = run(pipe, name, LastBlock(), MASK, forecasters.reuse)
    limit = {"rtol": 1e-4, "atol": 1e-4 * float(whole.abs().max())}
    torch.testing.assert_close(run(pipe, name, Trusted(theta=1e3, decay=0.0), MASK, CHEBYSHEV)[0], whole, **limit)
    between, _ = run(pipe, name, Trusted(), MASK, CHEBYSHEV)
    assert float((between - whole).abs().max()) > limit["atol"] < float((between - reused).abs().max())


def test_a_forecast_that_agrees_with_the_line_is_trusted_by_distance_alone(random_pipes, no_gradients):
    """The forecast is the line itself: risk 0, so that theta alone sets the trust."""
    pipe = random_pipes("flux")
    line, _ = run(pipe, "flux", LastBlock(), MASK, TAYLOR)
    trusted, _ = run(pipe, "flux", Trusted(theta=10.0, decay=0.0), MASK, TAYLOR)
    torch.testing.assert_close(trusted, line, rtol=1e-4, atol=1e-4 * float(line.abs().max()))


def test_constants_out_of_range_are_refused():
    for wrong in ({"theta": -1}, {"decay": "x"}):
        with pytest.raises(BadValue, match="must be a number of at least 0"):
            Algorithm("x", MASK, CHEBYSHEV, Trusted(**wrong)).check(6)
