"""Two denoisers by turns, as in Wan2.2: which of them runs at which step, known before the run."""

import copy
from collections.abc import Sized
from typing import Any

from spectrum_bench.schedules import ALONE, Starts


def takeovers(pipe: Any, networks: Sized, T: int) -> Starts:
    """The first step of each network: of one, or of two that diffusers' `boundary_ratio` parts by the timestep.

    Args:
        pipe: is left as it is.
        networks: its denoisers.
        T: the call's `num_inference_steps`.
    """
    ratio = getattr(pipe, "config", {}).get("boundary_ratio")
    if ratio is None or len(networks) == 1:
        return ALONE
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(T)
    above = int((scheduler.timesteps >= ratio * scheduler.config.num_train_timesteps).sum())
    return (0, above) if 0 < above < T else ALONE
