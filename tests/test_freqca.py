"""FreqCa: its bands against SciPy's cosine transform, its weights by hand, and its site on every miniature."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import MASK, TAYLOR, run
from scipy.fft import dctn, idctn

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.history import History
from spectrum_bench.caching.sites.bands import Bands
from spectrum_bench.caching.sites.corrected import Corrected
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.frequencies import low_band, on_grid

FREQCA = partial(forecasters.freqca, order=2, sigma=0.71)


@pytest.mark.parametrize("grid", [(8, 12), (3, 6, 5)])
@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.45])
def test_the_low_band_is_that_of_scipys_transform(grid, cutoff):
    x = torch.randn(2, *grid, 3, generator=torch.Generator().manual_seed(0))
    axes = tuple(range(1, len(grid) + 1))
    frequency = np.sqrt(sum(i**2.0 for i in np.indices(grid)))
    kept = (frequency <= cutoff * frequency.max())[None, ..., None]
    expected = idctn(dctn(x.double().numpy(), axes=axes, norm="ortho") * kept, axes=axes, norm="ortho")
    torch.testing.assert_close(low_band(x, cutoff).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_the_weights_by_hand():
    """Two steps before 8: the low band is h8. The high band adds 2 s^2 x D, D = (h8 - h2) / 6, x = 1, and
    s^2 (4 s^2 x^2 - 2) / 2 times D' = (D - (h2 - h1)) / 6."""
    s2 = 0.71**2
    first, second = 2 * s2, s2 * (2 * s2 - 1)
    by_hand = [0, second / 6, -first / 6 - second * (1 / 36 + 1 / 6), 1 + first / 6 + second / 36]
    weights = FREQCA(np.array([0.0, 1.0, 2.0, 8.0]), 9.0, warmup=1)
    assert weights.shape == (4, 2, 1, 1)
    assert weights[:, 0, 0, 0].tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(weights[:, 1, 0, 0], by_hand, atol=1e-12)


def test_a_history_weighs_its_bands_apart():
    rows = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    history, weights = History(), np.array([[0.0, 1.5], [0.0, -2.0], [1.0, 0.5]])
    for row in rows:
        history.append(row)
    combined = history.combine(weights[:, :, None, None])
    np.testing.assert_allclose(combined, np.einsum("kg,kbgld->bgld", weights, rows.numpy()), rtol=1e-5, atol=1e-6)
    with pytest.raises(DoesNotFit, match="do not fit"):
        history.combine(np.ones((3, 3, 1, 1)))
    with pytest.raises(DoesNotFit, match="do not fit"):
        history.combine(np.ones((3, 4)))


@pytest.mark.parametrize("name", ["flux", "sd3", "sdxl", "wan", "hunyuan"])
def test_both_bands_together_are_the_last_block(random_pipes, no_gradients, name):
    pipe = random_pipes(name)
    whole, _ = run(pipe, name, LastBlock(), MASK, TAYLOR, height=64, width=96)
    split, _ = run(pipe, name, Bands(0.3), MASK, TAYLOR, height=64, width=96)
    torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))
    apart, _ = run(pipe, name, Bands(0.3), MASK, FREQCA, height=64, width=96)
    assert float((apart - whole).abs().max()) > 1e-3 * float(whole.abs().max())


def test_bands_are_refused_where_nothing_splits_them():
    mask = partial(schedules.uniform, interval=4)
    with pytest.raises(DoesNotFit, match="weighs frequency bands apart: use site=bands"):
        Algorithm("x", mask, FREQCA, LastBlock()).check(20)
    with pytest.raises(BadValue, match="cutoff must be a number from 0 to 1, not 2"):
        Algorithm("x", mask, FREQCA, Bands(2)).check(20)
    for site in (Bands(), Corrected(Bands())):
        Algorithm("x", mask, FREQCA, site).check(20)


def test_tokens_that_fill_no_grid_are_refused():
    tokens = torch.arange(12.0).reshape(1, 6, 2)
    assert torch.equal(on_grid(tokens, torch.tensor([2, 3])), tokens.reshape(1, 2, 3, 2))
    with pytest.raises(DoesNotFit, match="6 tokens are no grid of 2 x 2: use an algo without frequencies"):
        on_grid(tokens, torch.tensor([2, 2]))
