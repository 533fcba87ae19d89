"""Sums over rows in place of the rows: the same forecasts, in less memory."""

from functools import partial

import golden
import numpy as np
import pytest
import torch
from helpers import run, settings

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.history import History
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.caching.sites.summed import Summed, Sums, Terms
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import DoesNotFit, UserError
from spectrum_bench.sampling.counting import count
from spectrum_bench.sampling.jobs import Job

COMPUTED = [0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 23, 29, 36, 43]
BF16 = 2**-8  # half a unit in the last place, of 1


def forecaster(blend, steps=50):
    return partial(forecasters.spectrum, degree=4, ridge=0.1, blend=blend, steps=steps)


@pytest.mark.parametrize("blend", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forecast_is_that_of_the_rows(blend, dtype):
    """In float64, after every computed step; in bfloat16 no worse than the rows, whose sum is fp32 too."""
    random, times = torch.Generator().manual_seed(0), []
    rows, sums = History(), Sums(Terms(4, 50, 0 if blend == 1 else 2), times)
    kept = []
    for step in COMPUTED:
        times.append(step)
        feature = (torch.randn(1, 5, 7, generator=random) + 0.1 * step).to(dtype)
        kept.append(feature.double().numpy())
        for history in (rows, sums):
            history.append(feature)
        weights = forecaster(blend)(np.array(times, float), step + 1)
        exact = np.tensordot(weights, kept, 1)
        scale = np.abs(weights) @ np.abs(kept).max((1, 2, 3))  # of what is added up
        for history in (rows, sums):
            out = history.combine(weights)
            assert out.dtype == dtype
            error = np.abs(out.double().numpy() - exact).max()
            assert error < 1e-6 * scale + (BF16 * np.abs(exact).max() if dtype == torch.bfloat16 else 0)
    assert len(sums) == len(rows) == 14
    assert sums.nbytes == (5 * 4 + (0 if blend == 1 else 2) * dtype.itemsize) * 35 < 14 * 4 * 35


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_sample_is_that_of_the_rows(random_pipes, no_gradients, name):
    """Two network calls a step have sums of their own. Nothing stays of one sample for the next one."""
    mask = partial(schedules.mask, steps=[0, 1, 2, 5])
    chosen = forecaster(0.5, 8)
    rows, _ = run(random_pipes(name), name, LastBlock(), mask, chosen, steps=8)
    sums, session = run(random_pipes(name), name, Summed(LastBlock()), mask, chosen, steps=8)
    again, _ = run(random_pipes(name), name, Summed(LastBlock()), mask, chosen, steps=8)
    assert torch.equal(sums, again) and session.computed_steps == [0, 1, 2, 5]
    torch.testing.assert_close(sums, rows, rtol=1e-4, atol=1e-4 * float(rows.abs().max()))


def test_less_memory_is_foretold_and_held():
    """tiny-flux, 20 steps of which Spectrum computes 9, in fp32: 7 rows in place of 9."""
    words = ["history=sums", "algo.w=0.5"]
    given = golden.chosen("tiny-flux", "spectrum", *words)
    _, figures = golden.sample("tiny-flux", "spectrum", *words)
    plain = golden.read("tiny-flux")["spectrum"]
    assert figures.computed_steps == plain["computed_steps"] and len(figures.computed_steps) == 9
    assert figures.cache_bytes == count(given, build(given), Job("one", 0, golden.PICTURE, 0)).cache_bytes
    assert figures.cache_bytes == plain["cache_bytes"] * 7 // 9


@pytest.mark.parametrize(
    "words,reason",
    [
        (["algo=fora"], "history=sums is for Spectrum's forecaster"),
        (["algo=spectrum", "algo.w=0"], "algo.w above 0"),
        (["algo=nocache"], "algo=nocache caches nothing: leave history= out"),
        (["algo=spectrum", "site=solver"], "history=sums does not fit site=Solver"),
    ],
)
def test_what_cannot_be_summed_is_refused(words, reason):
    with pytest.raises(UserError, match=reason):
        build(settings("history=sums", *words)).check(50)


def test_rows_that_are_not_kept_are_not_made_up():
    """A site that reads the newest row, as RACER's does, or that edits it."""
    times = [0, 1, 2, 3, 4, 5, 6, 7]
    sums = Sums(Terms(4, 50, 0), [])
    for step in times:
        sums.times.append(step)
        sums.append(torch.ones(1, 2, 3))
    for wrong in (np.eye(8)[-1], np.ones((8, 3)), np.ones(7)):
        with pytest.raises(DoesNotFit, match="history=sums does not keep"):
            sums.combine(wrong)
    with pytest.raises(DoesNotFit, match="history=sums does not keep"):
        sums.correct(lambda row: row)
    with pytest.raises(DoesNotFit, match="forgets a row"):
        sums.forget(7)
