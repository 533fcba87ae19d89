"""What is run: a schedule, a forecaster and a site under one name."""

from dataclasses import dataclass

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from spectrum_bench import forecasters, gates, schedules
from spectrum_bench.caching.sites.base import Site
from spectrum_bench.errors import UserError
from spectrum_bench.forecasters import Weights
from spectrum_bench.schedules import Schedule


@dataclass(frozen=True)
class Algorithm:
    """A named triple; `site` None is the plain pipeline."""

    name: str
    schedule: Schedule
    forecaster: Weights
    site: Site | None


def build(plain: dict):
    """The Algorithm of a resolved configuration.

    Raises:
        UserError: arguments that its functions do not take, or values that make no sense.
    """
    from spectrum_bench.caching.algorithm import Algorithm

    try:
        schedule, site, forecaster = (
            instantiate(node) if node else None
            for node in (plain["schedule"], plain["site"], plain["algo"]["forecaster"])
        )
        mask = schedules.plan(schedule, plain["num_inference_steps"])
        if site is None and (mask is None or not mask.all()):
            raise ValueError(f"algo={plain['algo']['name']} caches nothing, so schedule=full is the only one for it")
        if site is not None and forecaster is None:
            raise ValueError(f"site and forecaster belong together: algo={plain['algo']['name']} has no forecaster")
        if mask is None:
            gates.check(schedule, plain["num_inference_steps"], site)
        forecaster = forecaster or forecasters.reuse
        forecaster(np.arange(3.0), 4.0)
        if hasattr(site, "check"):
            site.check(schedule, forecaster)
    except (InstantiationException, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error.__cause__ or error).split())) from None
    return Algorithm(plain["algo"]["name"], schedule, forecaster, site)
