"""What is run: a schedule, a forecaster and a site under one name."""

from dataclasses import dataclass

import numpy as np

from spectrum_bench import forecasters, gates, schedules
from spectrum_bench.caching.sites.base import Site
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.forecasters import Weights
from spectrum_bench.schedules import Schedule


@dataclass(frozen=True)
class Algorithm:
    """A named triple; `site` None is the plain pipeline."""

    name: str
    schedule: Schedule
    forecaster: Weights
    site: Site | None

    def check(self, T: int) -> None:
        """Refuse what can be refused without a model.

        Raises:
            UserError: constants that make no sense over T steps, or parts that do not go together.
        """
        mask = schedules.plan(self.schedule, T)
        if self.site is None and (mask is None or not mask.all()):
            raise DoesNotFit(f"algo={self.name} caches nothing, so schedule=full is the only one for it")
        if mask is None:
            gates.check(self.schedule, T, self.site)
        self.forecaster(np.arange(3.0), 4.0)
        if hasattr(self.site, "check"):
            self.site.check(self.schedule, self.forecaster)


NOCACHE = Algorithm("nocache", schedules.full, forecasters.reuse, None)  # the plain pipeline: the reference
