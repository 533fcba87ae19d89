"""How noisy a latent is, as the pipeline's scheduler has it."""

from typing import Any

from torch import Tensor

from spectrum_bench.errors import DoesNotFit


def noise_ratio(scheduler: Any, step: int) -> Tensor:
    """sigma / alpha of the latent alpha x_0 + sigma noise before a step, () float; inf for pure noise.

    Raises:
        DoesNotFit: the scheduler has no noise levels.
    """
    sigma = sigma_before(scheduler, step)
    return sigma / (1 - sigma) if _is_flow(scheduler) else sigma


def sigma_before(scheduler: Any, step: int) -> Tensor:
    """The scheduler's own noise level before a step, () float. Step T is the end.

    Raises:
        DoesNotFit: the scheduler has no noise levels.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        raise DoesNotFit(f"{type(scheduler).__name__} has no noise levels (sigmas): use an algo that needs none")
    sigma: Tensor = sigmas[step]
    return sigma


def _is_flow(scheduler: Any) -> bool:
    """Whether alpha = 1 - sigma (flow matching). In the other schedulers with sigmas alpha is 1."""
    flow = scheduler.config.get("use_flow_sigmas") or scheduler.config.get("prediction_type") == "flow_prediction"
    return bool(flow) or "FlowMatch" in type(scheduler).__name__
