"""How close a sample is to its reference, by pixels: PSNR, SSIM, MS-SSIM, and the change from frame to frame. Pictures
are (H, W, 3) uint8, clips (F, H, W, 3)."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from spectrum_bench.sampling.media import Pixels
from spectrum_bench.scoring.metrics.contracts import ModelFacts, PairedScorer, Unscorable

CAP = 100.0  # dB; the PSNR of identical pictures is infinite and would make every mean infinite
BORDER = 5  # pixels of SSIM's window on either side
ROWS = 64  # of a strip: what SSIM computes of it stays in the processor's cache
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # MS-SSIM's exponents, the finest scale first
Floats = NDArray[np.float64]


def make_psnr(model: ModelFacts) -> PairedScorer:
    return psnr


def make_psnr_uint8_wrapped(model: ModelFacts) -> PairedScorer:
    return psnr_uint8_wrapped


def make_ssim(model: ModelFacts) -> PairedScorer:
    return ssim


def make_ssim_grey(model: ModelFacts) -> PairedScorer:
    return ssim_grey


def make_ms_ssim(model: ModelFacts) -> PairedScorer:
    return ms_ssim


def make_flicker(model: ModelFacts) -> PairedScorer:
    return flicker


def psnr(sample: Pixels, reference: Pixels) -> float:
    """10 log10(255^2 / MSE) in dB over all pixels and channels, in float64, at most 100."""
    check_pair(sample, reference, side=1)
    mse = np.mean((sample.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return CAP if mse == 0 else min(CAP, float(10 * np.log10(255**2 / mse)))


def psnr_uint8_wrapped(sample: Pixels, reference: Pixels) -> float:
    """The PSNR that `np.mean((a - b) ** 2)` gives for uint8 arrays, where differences and squares wrap at 256: to tell
    what formula a published value may come from (docs/psnr.md), and for nothing else."""
    check_pair(sample, reference, side=1)
    wrapped = sample - reference
    mse = np.mean(wrapped * wrapped)
    return CAP if mse == 0 else min(CAP, float(10 * np.log10(255**2 / mse)))


def ssim(sample: Pixels, reference: Pixels) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian 11x11 of sigma 1.5, K 0.01 and 0.03, population covariance,
    each RGB channel by itself, in float64, over the pixels whose window lies inside the picture (5 px border cropped).

    We do not use torchmetrics, which takes 13 s for a pair of 1024x1024 in float64; this takes 0.1 s. The tests compare
    the two.
    """
    check_pair(sample, reference, side=11)
    whole = np.empty(sample.shape)  # the border stays unwritten
    for first in range(0, len(sample) - 2 * BORDER, ROWS):
        strip = slice(first, first + ROWS + 2 * BORDER)
        inner, _ = _similarity(sample[strip].astype(np.float64), reference[strip].astype(np.float64))
        whole[first + BORDER : first + len(inner) - BORDER] = inner[BORDER:-BORDER]
    return float(whole[BORDER:-BORDER, BORDER:-BORDER].mean())


def ssim_grey(sample: Pixels, reference: Pixels) -> float:
    """SSIM of grey levels with scikit-image's defaults, which several evaluators of caching methods take: a square
    window of 7x7, sample covariance, over the pixels whose window lies inside the picture."""
    check_pair(sample, reference, side=7)
    x, y = (_grey(picture) for picture in (sample, reference))
    mx, my = uniform_filter(x, 7), uniform_filter(y, 7)
    of_a_sample = 49 / 48
    vx, vy, vxy = (
        of_a_sample * (uniform_filter(a * b, 7) - uniform_filter(a, 7) * uniform_filter(b, 7))
        for a, b in ((x, x), (y, y), (x, y))
    )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(similarity[3:-3, 3:-3].mean())


def _grey(picture: Pixels) -> Floats:
    """(H, W) whole grey levels, weighted as OpenCV does (ITU-R BT.601)."""
    levels: Floats = np.floor(picture @ np.array([0.299, 0.587, 0.114]) + 0.5)
    return levels


def ms_ssim(sample: Pixels, reference: Pixels) -> float:
    """Multi-scale SSIM (Wang, Simoncelli and Bovik 2003): the product over five scales of the mean contrast and
    structure, on the coarsest scale with luminance, to the exponents SCALES. A scale is the mean of 2x2 pixels of the
    one before; windows and constants are SSIM's. A negative factor counts as 0."""
    check_pair(sample, reference, side=2 ** (len(SCALES) - 1) * (2 * BORDER + 1))
    x, y, product = sample.astype(np.float64), reference.astype(np.float64), 1.0
    inside = slice(BORDER, -BORDER)
    for scale, exponent in enumerate(SCALES, 1):
        whole, structure = _similarity(x, y)
        factor = float((whole if scale == len(SCALES) else structure)[inside, inside].mean())
        product *= max(0.0, factor) ** exponent
        x, y = _halved(x), _halved(y)
    return product


def _halved(x: Floats) -> Floats:
    """The means of 2x2 pixels; an odd row or column at the end is left out."""
    height, width = x.shape[0] // 2, x.shape[1] // 2
    means: Floats = x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).mean((1, 3))
    return means


def flicker(sample: Pixels, reference: Pixels) -> float:
    """How far the change from frame to frame differs from the reference's: the mean absolute difference of both
    changes, in grey levels of 255. Flicker that a reference lacks counts, and so does motion that it has."""
    for frame, other in zip(sample, reference, strict=True):
        check_pair(frame, other, side=1)
    if len(sample) < 2:
        raise Unscorable("has one frame, and nothing changes in it")
    change, wanted = (np.diff(clip.astype(np.int16), axis=0) for clip in (sample, reference))
    return float(np.abs(change - wanted).mean())


def _similarity(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Of each pixel and channel of (H, W, 3) pictures: SSIM, and its factor of contrast and structure. Wrong where the
    window leaves the picture."""

    def blur(x: Floats) -> Floats:  # separable: fifty times as fast as a two-dimensional convolution in float64
        blurred: Floats = gaussian_filter(x, sigma=1.5, radius=BORDER, axes=(0, 1))
        return blurred

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure: Floats = (2 * vxy + c2) / (vx + vy + c2)
    luminance: Floats = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return luminance * structure, structure


def check_pair(sample: Pixels, reference: Pixels, side: int) -> None:
    """Refuse two pictures that cannot be compared.

    Args:
        side: the smallest width and height that the metric takes.

    Raises:
        Unscorable: the pictures are not 8-bit RGB, differ in size, or are too small.
    """
    for picture in (sample, reference):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise Unscorable(f"is {picture.dtype} {picture.shape}, not an 8-bit RGB picture")
    (h, w), (rh, rw) = sample.shape[:2], reference.shape[:2]
    if (h, w) != (rh, rw):
        raise Unscorable(
            f"is {w}x{h} and its reference {rw}x{rh}: make both with the same model.width and model.height"
        )
    if min(h, w) < side:
        raise Unscorable(f"is {w}x{h}, smaller than the metric's window: it takes pictures from {side}x{side}")
