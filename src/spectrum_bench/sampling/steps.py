"""When a step of a pipeline ends."""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Any

from torch import Tensor

from spectrum_bench.caching.propagation import watch

StepDone = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def at_step_end(pipe: Any, step_done: StepDone, undo: ExitStack) -> dict[str, Any]:
    """The argument of the pipeline's call with which `step_done` runs after each step.

    A pipeline without `callback_on_step_end`, such as HunyuanVideo-1.5's, gets no argument: its step ends when its
    scheduler has made the next latent, which `step_done` may replace. `undo` takes the scheduler's watch off.

    Args:
        step_done: as diffusers has it: (pipeline, step, timestep, {"latents": latent}) to the tensors to go on with.
    """
    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        return {"callback_on_step_end": step_done}
    steps = count()

    def advance(output: Tensor, before: Tensor, latent: Tensor) -> Tensor:
        step = next(steps)
        going_on: Tensor = step_done(pipe, step, pipe.scheduler.timesteps[step], {"latents": latent})["latents"]
        return going_on

    watch(pipe.scheduler, lambda: None, advance, undo)
    return {}
