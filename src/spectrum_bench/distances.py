"""How far tensors are from each other, as the methods' papers measure it. Gates compare with these."""

import math
from typing import Any

import torch
from torch import Tensor


def relative(forecast: Tensor, real: Tensor) -> float:
    """SpeCa's error: mean |forecast - real| / |real|, element by element, hence its large thresholds."""
    if real.dtype == torch.float16:  # there the floor is 0, and the 0 / 0 of one element would pass every test
        forecast, real = forecast.float(), real.float()
    return float(((forecast - real).abs() / (real.abs() + 1e-10)).float().mean())


def relative_change(new: Tensor, old: Tensor | None) -> float:
    """The distance to the tensor of the step before; nan at the first step."""
    return math.nan if old is None else distance(new, old)


def distance(new: Tensor, old: Tensor) -> float:
    """mean |new - old| / mean |old|; inf where that is 0 / 0 or nan: nobody can tell, and the step is computed."""
    ratio = float(size(new - old) / size(old))
    return math.inf if math.isnan(ratio) else ratio


def waiting_change(new: Tensor, old: Tensor | None) -> Tensor | None:
    """The relative change from the step before while it is still on the device; None at the first step."""
    return None if old is None else size(new - old) / size(old)


def size(tensor: Tensor) -> Tensor:
    """mean |tensor|."""
    return tensor.abs().mean()


def read(*scalars: Tensor | None) -> list[Any]:
    """The values of tensors with one element; None stays None. However many there are, this waits for the device
    once."""
    tensors = [scalar for scalar in scalars if scalar is not None]
    together = torch.stack([scalar.to(tensors[0].device) for scalar in tensors]) if tensors else torch.empty(0)
    values = iter(together.tolist())
    return [None if scalar is None else float(next(values)) for scalar in scalars]
