"""How pictures go through a network: on the GPU if there is one, many at once, in whole float32."""

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
    """Cut a list of pictures into runs of one size that hold at most so many pixels; a larger picture goes alone."""
    start = 0
    for i, picture in enumerate(pictures):
        full = (i - start + 1) * picture.shape[0] * picture.shape[1] > pixels
        if i > start and (full or picture.shape != pictures[start].shape):
            yield slice(start, i)
            start = i
    if pictures:
        yield slice(start, len(pictures))


def stacked(pictures: Sequence[Pixels]) -> Tensor:
    """(B, 3, H, W) float32 on the device, as they are: 0 to 255."""
    return torch.from_numpy(np.stack(pictures)).to(device()).permute(0, 3, 1, 2).float()


@contextmanager
def whole_float32() -> Iterator[None]:
    """Without TF32, which cuDNN's convolutions take by themselves: it would change printed digits."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
