"""Spatial frequencies of tokens on their grid: SeaCache's filter."""

import torch
from torch import Tensor

LOUDEST = 1e6  # noise-to-signal ratio of pure noise, as SeaCache's code has it


def on_grid(x: Tensor, grid: Tensor) -> Tensor:
    """(B, *grid, C) of tokens (B, L, C) in the grid's order, or of a latent (B, C, *sizes)."""
    return x.unflatten(1, [int(n) for n in grid.flatten()]) if x.ndim == 3 else x.movedim(1, -1)


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
