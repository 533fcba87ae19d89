"""The pipeline that a study of a model runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.session import denoisers
from spectrum_bench.caching.turns import takeovers
from spectrum_bench.sampling.sampler import Sampler
from spectrum_bench.schedules import Starts


@dataclass(frozen=True)
class Uncached:
    """A pipeline for uncached samples, with the number of steps and the arguments of its call."""

    pipe: Any
    num_steps: int
    arguments: Mapping[str, Any]

    @property
    def starts(self) -> Starts:
        """The first step of each network of those that run by turns."""
        return takeovers(self.pipe, denoisers(self.pipe), self.num_steps)

    def sampler(self, algorithm: Algorithm) -> Sampler:
        """The same pipeline under an algorithm."""
        return Sampler(self.pipe, algorithm, self.num_steps, self.arguments)
