"""How a scheduler carries latents on: a matrix, for every deterministic scheduler that is linear in what it is given.

x_t = A_t0 x_0 + sum_{s < t} A_{t,s+1} v_s, where x_t is the latent before step t and v_s the guided output of the
denoiser at step s. A is read off by running a copy of the pipeline's own scheduler, so that no solver needs a case.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrum_bench.caching.replacing import replace_method
from spectrum_bench.errors import DoesNotFit

Matrix = NDArray[np.float64]
TOLERANCE = 1e-4  # of a trial trajectory; schedulers compute in float32

# (output v_s, latent x_s, latent x_{s+1} as the scheduler has it) -> x_{s+1}
Advance = Callable[[Tensor, Tensor, Tensor], Tensor]


def propagator(scheduler: Any) -> Matrix:
    """A, (T + 1, T + 1) float64: row t holds the coefficients of x_0, v_0 .. v_{T-1} in x_t.

    Args:
        scheduler: as the pipeline has set it up for a sample, before its first step. It is left as it is.

    Raises:
        DoesNotFit: the scheduler draws noise, or is not linear.
    """
    T = len(scheduler.timesteps)
    rows: Matrix = _trajectory(scheduler, torch.eye(T + 1, dtype=torch.float64)).numpy()
    trial = torch.from_numpy(np.random.default_rng(0).standard_normal((T + 1, 8)))
    run, told = _trajectory(scheduler, trial).numpy(), rows @ trial.numpy()
    if not np.abs(run - told).max() <= TOLERANCE * np.abs(run).max():
        raise DoesNotFit(
            f"{type(scheduler).__name__} draws noise or is not linear in the denoiser's outputs, so nothing can be "
            "corrected through it: use another site"
        )
    return rows


def _trajectory(scheduler: Any, basis: Tensor) -> Tensor:
    """The latents before every step and after the last one, (T + 1, D), from x_0 and the outputs in `basis`, (T + 1,
    D). A copy of the scheduler runs on the CPU, wherever the pipeline has set it up."""
    scheduler = copy.deepcopy(scheduler)
    vars(scheduler).pop("step", None)  # a wrapper of this module
    vars(scheduler).update({name: value.cpu() for name, value in vars(scheduler).items() if isinstance(value, Tensor)})
    rows = [basis[:1]]
    for v, timestep in zip(basis[1:], scheduler.timesteps, strict=True):
        rows.append(scheduler.step(v[None], timestep, rows[-1], return_dict=False)[0].double())
    return torch.cat(rows)


def watch(scheduler: Any, begin: Callable[[], None], advance: Advance, undo: ExitStack) -> None:
    """Call `begin` before a scheduler's first step, and let `advance` see every step and replace its latent. `undo`
    takes both off."""
    step, begun = scheduler.step, False

    def watched(output: Tensor, timestep: Any, latent: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal begun
        if not begun:
            begin()
        begun = True
        result = step(output, timestep, latent, *args, **kwargs)
        if isinstance(result, tuple):
            return (advance(output, latent, result[0]), *result[1:])
        result.prev_sample = advance(output, latent, result.prev_sample)
        return result

    replace_method(scheduler, "step", watched, undo)
