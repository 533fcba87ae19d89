"""Spatial frequencies of tokens on their grid: SeaCache's filter and FreqCa's bands."""

import math

import torch
from torch import Tensor

from spectrum_bench.errors import DoesNotFit

LOUDEST = 1e6  # noise-to-signal ratio of pure noise, as SeaCache's code has it


def on_grid(x: Tensor, grid: Tensor) -> Tensor:
    """(B, *grid, C) of tokens (B, L, C) in the grid's order, or of a latent (B, C, *sizes).

    Raises:
        DoesNotFit: there are more or fewer tokens than places, as where text or another picture is among them.
    """
    if x.ndim != 3:
        return x.movedim(1, -1)
    sizes = [int(n) for n in grid.flatten()]
    if x.shape[1] != math.prod(sizes):
        places = " x ".join(map(str, sizes))
        raise DoesNotFit(f"{x.shape[1]} tokens are no grid of {places}: use an algo without frequencies")
    tokens: Tensor = x.unflatten(1, sizes)
    return tokens


def wiener(x: Tensor, noise: float) -> Tensor:
    """SeaCache's filter (arXiv:2602.18993, eqs. 5-7): along each axis of the grid the Wiener filter of a signal with
    power f^-p in white noise, all together scaled to unit mean.

    Args:
        x: (B, *grid, C).
        noise: sigma / alpha of the latent alpha x_0 + sigma noise.

    Returns:
        (B, *grid, C) in the dtype of x. p is the number of axes: 2 for pictures, 3 for clips, as in the authors' code,
        whose filter (util_seacache.py), driven beside this one, differs by at most 6e-7 of the largest value.
    """
    axes = tuple(range(1, x.ndim - 1))
    gain = torch.ones((), device=x.device)
    for axis in axes:
        f = torch.fft.fftfreq(x.shape[axis], device=x.device).abs()
        along = 1 / (1 + min(noise, LOUDEST) ** 2 * f ** len(axes))
        gain = gain * along.reshape([-1] + [1] * (x.ndim - 1 - axis))
    spectrum = torch.fft.fftn(x.float(), dim=axes)
    filtered: Tensor = torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=axes).real
    return filtered.to(x.dtype)


def low_band(x: Tensor, cutoff: float) -> Tensor:
    """The low frequencies of (B, *grid, C), by the cosine transform along the grid's axes (FreqCa, arXiv:2510.08669):
    those whose distance from the mean is at most `cutoff` times the largest. In fp32, returned in the dtype of x."""
    low = x.float()
    waves = [_cosines(n, x.device) for n in x.shape[1:-1]]
    for axis, cosines in enumerate(waves, 1):
        low = _along(cosines, low, axis)
    index = torch.meshgrid(*(torch.arange(n, device=x.device) for n in x.shape[1:-1]), indexing="ij")
    frequency = torch.stack(index).float().norm(dim=0)
    low = low * (frequency <= cutoff * frequency.max())[..., None]
    for axis, cosines in enumerate(waves, 1):
        low = _along(cosines.T, low, axis)
    return low.to(x.dtype)


def _cosines(n: int, device: torch.device) -> Tensor:
    """(n, n) the orthonormal cosine transform (DCT-II) of n points, one wave a row."""
    wave, place = torch.arange(n, device=device)[:, None], torch.arange(n, device=device)
    cosines = math.sqrt(2 / n) * torch.cos(math.pi * wave * (2 * place + 1) / (2 * n))
    cosines[0] /= math.sqrt(2)
    return cosines


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """A matrix applied to one axis."""
    product: Tensor = torch.tensordot(matrix, x, dims=([1], [axis]))
    return product.movedim(0, axis)
