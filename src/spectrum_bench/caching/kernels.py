"""The weighted sum of a history's rows as Triton kernels, in one pass over memory: every row is read once and the
forecast is written once, which is 2K + 2 bytes an element in 16 bits.

Rounding: products and sums are made in fp32, oldest row first; the sum is rounded once, to the nearest, to the rows'
dtype. Weights are rounded to fp32. The compiler may fuse a product and a sum, so that a forecast equals that
of `history.weighted_sum` up to the rounding of fp32, and not to the bit.

This module needs Triton: history.py imports it at the first forecast on a GPU. On the CPU the kernels run in Triton's
interpreter alone (TRITON_INTERPRET=1), for tests.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from spectrum_bench.forecasters import Weights

DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # float64 is not summed in fp32
MOST = 64  # rows; the compiler makes one kernel for each number of rows and unrolls its loop
BLOCK, WARPS = 1024, 8  # elements and warps a program: the fastest on an H200 with large rows, by little
TOKENS, CHANNELS = 8, 256  # a program's, with weights for each channel


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _by_row(rows, weights, out, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out = sum_k weights[k] * rows[k], over n elements; `rows` and `weights` are tuples."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(len(rows)):
        total += weights[k] * tl.load(rows[k] + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _by_channel(rows, weights, out, tokens, channels, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The same with a weight for each channel: `weights` points to (K, channels) in fp32."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (token < tokens)[:, None] & (channel < channels)[None, :]
    at = token[:, None] * channels + channel[None, :]
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for k in tl.static_range(len(rows)):
        weight = tl.load(weights + k * channels + channel, mask=channel < channels, other=0.0)
        total += weight[None, :] * tl.load(rows[k] + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def fits(rows: Sequence[Tensor], weights: Weights) -> bool:
    """Whether the kernels can read these rows, which have one shape and dtype, and know such weights."""
    known = isinstance(weights, tuple) or weights.ndim == 2
    return known and len(rows) <= MOST and rows[0].dtype in DTYPES and all(row.is_contiguous() for row in rows)


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def weighted_sum(rows: Sequence[Tensor], weights: Weights) -> Tensor:
    """sum_k weights[k] * rows[k] in the rows' dtype.

    Args:
        rows: K contiguous tensors of one shape and dtype, on one device.
        weights: (K,), or (K, D) for (..., D) rows.
    """
    newest = rows[-1]
    # the interpreter truncates instead of rounding, so there torch rounds
    out = torch.empty_like(newest, dtype=newest.dtype if newest.is_cuda else torch.float32)
    if isinstance(weights, tuple):
        sum_by_row(rows, weights, out)
    else:
        sum_by_channel(rows, on_device(weights, newest.device), out)
    return out.to(newest.dtype)


def on_device(weights: Weights, device: torch.device) -> Tensor:
    """(K, D) weights in fp32, copied without waiting for the device. NumPy converts them: torch would wake all threads
    for 51,200 numbers, which took 16 ms on a machine with 16 cores (results/h100)."""
    numbers = torch.empty(np.shape(weights), dtype=torch.float32, pin_memory=device.type == "cuda")
    numbers.numpy()[...] = weights
    return numbers.to(device, non_blocking=True)


def sum_by_row(
    rows: Sequence[Tensor], weights: tuple[float, ...], out: Tensor, block: int = BLOCK, warps: int = WARPS
) -> None:
    """Write the sum to `out`. The weights are arguments of the kernel, so that nothing is copied to the device."""
    n = out.numel()
    with torch.cuda.device_of(out):
        _by_row[(triton.cdiv(n, block),)](tuple(rows), weights, out, n, BLOCK=block, num_warps=warps)


def sum_by_channel(rows: Sequence[Tensor], weights: Tensor, out: Tensor) -> None:
    """Write the sum to `out` with (K, D) weights in fp32 on the rows' device."""
    channels = out.shape[-1]
    tokens = out.numel() // channels
    grid = (triton.cdiv(tokens, TOKENS), triton.cdiv(channels, CHANNELS))
    with torch.cuda.device_of(out):
        _by_channel[grid](
            tuple(rows), weights, out, tokens, channels, TOKENS=TOKENS, CHANNELS=CHANNELS, num_warps=WARPS
        )
