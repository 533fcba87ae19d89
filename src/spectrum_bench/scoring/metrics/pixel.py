"""How close a sample is to its reference, from pixels: PSNR, SSIM, LPIPS. Pictures are (H, W, 3) uint8."""

import hashlib
import os
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from spectrum_bench.errors import MetricUnavailable

CAP = 100.0  # dB; identical pictures have infinite PSNR, which no mean survives
# LPIPS's backbones: name in the package, file in PyTorch's cache; the digits in its name begin its SHA-256
BACKBONES = {"lpips": ("alex", "alexnet-owt-7be5be79.pth"), "lpips_vgg": ("vgg", "vgg16-397923af.pth")}


def make_psnr(config: dict):
    return psnr


def make_ssim(config: dict):
    return ssim


def psnr(sample: np.ndarray, reference: np.ndarray) -> float:
    """10 log10(255^2 / MSE) in dB over all pixels and channels, in float64, at most 100."""
    _same_size(sample, reference, side=1)
    mse = np.mean((sample.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return CAP if mse == 0 else min(CAP, float(10 * np.log10(255**2 / mse)))


def ssim(sample: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian 11x11 of sigma 1.5, K 0.01 and 0.03, population covariance,
    each RGB channel by itself, in float64, where the window lies wholly inside the picture (5 px border cropped)."""
    _same_size(sample, reference, side=11)

    def blur(x):  # separable, so fifty times as fast as a two-dimensional convolution in float64
        return gaussian_filter(x, sigma=1.5, radius=5, axes=(0, 1))

    x, y = sample.astype(np.float64), reference.astype(np.float64)  # (H, W, 3)
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    whole = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(whole[5:-5, 5:-5].mean())


def make_lpips(config: dict):
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018, arXiv:1801.03924)."""
    return _make_lpips("lpips")


def make_lpips_vgg(config: dict):
    """LPIPS v0.1 on VGG-16."""
    return _make_lpips("lpips_vgg")


def _make_lpips(metric: str):
    """Linear heads from the package `lpips`, the backbone from PyTorch's cache. It is never downloaded; its hash is
    checked, as wrong weights look plausible."""
    net, name = BACKBONES[metric]
    home = os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch"
    path = Path(home) / "hub" / "checkpoints" / name
    shown = str(path).replace(str(Path.home()), "~", 1)  # tables are published
    fetch = f"wget -P {Path(shown).parent} https://download.pytorch.org/models/{name}"
    if not path.is_file():
        raise MetricUnavailable(metric, f"no backbone weights {shown}", fetch)
    with open(path, "rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(name.rpartition("-")[2].removesuffix(".pth")):
            raise MetricUnavailable(metric, f"backbone weights {shown} are damaged", f"rm {shown}; {fetch}")
    return load_lpips(path, net)


def load_lpips(path: Path, net: str = "alex"):
    """The scorer whose backbone is the state dict at `path`."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision in a way that it deprecates
        import lpips

        model = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False).eval()
    slices = (getattr(model.net, f"slice{i}") for i in range(1, model.net.N_slices + 1))
    features = torch.nn.Sequential(OrderedDict(child for s in slices for child in s.named_children()))
    state = torch.load(path, map_location="cpu", weights_only=True)
    features.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})

    @torch.inference_mode()
    def score(sample: np.ndarray, reference: np.ndarray) -> float:
        _same_size(sample, reference, side=31)  # below, AlexNet's second pooling has nothing left; VGG takes 16
        a, b = (torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1 for p in (sample, reference))
        return float(model(a, b))

    return score


def _same_size(sample: np.ndarray, reference: np.ndarray, side: int) -> None:
    for picture in (sample, reference):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"is {picture.dtype} {picture.shape}, not an 8-bit RGB picture")
    (h, w), (rh, rw) = sample.shape[:2], reference.shape[:2]
    if (h, w) != (rh, rw):
        raise ValueError(
            f"is {w}x{h} and its reference {rw}x{rh}: make both with the same model.width and model.height"
        )
    if min(h, w) < side:
        raise ValueError(f"is {w}x{h}, smaller than the metric's window: it takes pictures from {side}x{side}")
