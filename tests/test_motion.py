"""Metrics of whole clips: the change from frame to frame against the reference's; and MS-SSIM."""

from pathlib import Path

import fabricate
import numpy as np
import pytest
import torch

from spectrum_bench.errors import MetricUnavailable, UserError
from spectrum_bench.scoring import scorers
from spectrum_bench.scoring.metrics import METRICS, perceptual, pixel
from spectrum_bench.scoring.metrics.contracts import ModelFacts, Unscorable

CLIP = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (10, 20, 30, 250)])


def test_flicker_by_hand():
    """The reference changes by 10, 10 and 220. Brightness that stays is no flicker, and differences do not wrap."""
    assert pixel.flicker(CLIP, CLIP) == 0 == pixel.flicker(CLIP + np.uint8(5), CLIP)
    still = np.repeat(CLIP[:1], 4, 0)
    assert pixel.flicker(still, CLIP) == pytest.approx((10 + 10 + 220) / 3) == pixel.flicker(CLIP, still)
    with pytest.raises(Unscorable, match="one frame"):
        pixel.flicker(CLIP[:1], CLIP[:1])


def test_tlpips_by_hand(monkeypatch):
    """LPIPS stands for the difference of means here."""
    monkeypatch.setattr(perceptual, "backbone", lambda metric: None)
    means = lambda a, b: [abs(float(x.mean()) - float(y.mean())) for x, y in zip(a, b, strict=True)]  # noqa: E731
    monkeypatch.setattr(perceptual, "load", lambda path, net: means)
    score = perceptual.make_tlpips(ModelFacts(fps=8))
    still = np.repeat(CLIP[:1], 4, 0)
    assert score([CLIP, still, CLIP[::-1]], [CLIP] * 3) == pytest.approx([0, 80, (210 + 0 + 210) / 3])


def test_a_metric_of_clips_gets_whole_clips():
    """Beside one that gets frames; of pictures it says so; clips of other lengths are refused."""
    found = scorers.load(ModelFacts(fps=8), ["psnr", "flicker"])
    brighter = CLIP.copy()
    brighter[1] += 10
    items = [scorers.Item(Path("a.mp4"), "a ring", each, CLIP) for each in (CLIP, brighter)]
    same, other = scorers.score(found, items)
    assert same == {"psnr": 100, "flicker": 0} and other["flicker"] == pytest.approx(20 / 3)
    with pytest.raises(UserError, match="a.mp4 has 3 frames and its reference 4"):
        scorers.score(found, [scorers.Item(Path("a.mp4"), "a ring", CLIP[:3], CLIP)])
    with pytest.raises(UserError, match="a.mp4 has one frame"):
        scorers.score(found, [scorers.Item(Path("a.mp4"), "a ring", CLIP[:1], CLIP[:1])])
    with pytest.raises(MetricUnavailable, match="these are pictures"):
        METRICS["flicker"].scorer(ModelFacts())


@pytest.mark.parametrize("size", [(176, 176), (190, 201)])
@pytest.mark.parametrize("sigma", [2, 40])
def test_ms_ssim_agrees_with_scikit_image(size, sigma):
    """By its SSIM of each scale; a huge K1 leaves luminance out. torchmetrics pads the border."""
    from skimage.metrics import structural_similarity
    from skimage.transform import downscale_local_mean
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as theirs

    picture = np.ascontiguousarray(fabricate.pictures(fabricate.captions(1), 208)[0][: size[0], : size[1]])
    other = fabricate.noisy(picture, sigma)
    a, b, wanted = picture.astype(np.float64), other.astype(np.float64), 1.0
    window = {"channel_axis": 2, "data_range": 255, "gaussian_weights": True, "use_sample_covariance": False}
    for exponent, k1 in zip((0.0448, 0.2856, 0.3001, 0.2363, 0.1333), (1e6, 1e6, 1e6, 1e6, 0.01), strict=True):
        wanted *= structural_similarity(a, b, K1=k1, **window) ** exponent
        even = tuple(slice(2 * (n // 2)) for n in a.shape[:2])
        a, b = (downscale_local_mean(x[even], (2, 2, 1)) for x in (a, b))
    assert pixel.ms_ssim(other, picture) == pytest.approx(wanted, abs=1e-9)
    assert pixel.ms_ssim(picture, picture) == pytest.approx(1)
    x, y = (torch.from_numpy(p.astype(np.float64)).permute(2, 0, 1)[None] for p in (other, picture))
    assert pixel.ms_ssim(other, picture) == pytest.approx(float(theirs(x, y, data_range=255.0)), abs=2e-3)


def test_ms_ssim_takes_no_smaller_picture_than_its_coarsest_scale():
    small = np.zeros((175, 200, 3), np.uint8)
    with pytest.raises(Unscorable, match="200x175, smaller than the metric's window: it takes pictures from 176x176"):
        pixel.ms_ssim(small, small)
