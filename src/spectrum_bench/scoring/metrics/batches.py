"""Batches of pictures for a network: on the GPU if there is one, in full float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from spectrum_bench.sampling.media import Pixels


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def runs(pictures: Sequence[Pixels], pixels: int) -> Iterator[slice]:
    """Cut a list of pictures into runs. Pictures of a run have one size, and together at most `pixels` pixels; a larger
    picture is a run of its own."""
    start = 0
    for i, picture in enumerate(pictures):
        full = (i - start + 1) * picture.shape[0] * picture.shape[1] > pixels
        if i > start and (full or picture.shape != pictures[start].shape):
            yield slice(start, i)
            start = i
    if pictures:
        yield slice(start, len(pictures))


def stacked(pictures: Sequence[Pixels]) -> Tensor:
    """(B, 3, H, W) float32 on the device, values from 0 to 255."""
    return torch.from_numpy(np.stack(pictures)).to(device()).permute(0, 3, 1, 2).float()


@contextmanager
def whole_float32() -> Iterator[None]:
    """Switch off TF32, which cuDNN's convolutions use by default: it would change printed digits."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
