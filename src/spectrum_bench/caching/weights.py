"""The weights of a sample's forecasts: what depends on times alone is asked of the forecaster once, and with a mask
before the first step."""

from collections.abc import Iterable

import numpy as np

from spectrum_bench.forecasters import Forecaster, Weights, forgotten, numbers
from spectrum_bench.schedules import Starts


class Remembered:
    """A forecaster's answers by (times, t), K Python floats or (K, D) each."""

    def __init__(self, forecaster: Forecaster):
        self.forecaster = forecaster
        self._weights: dict[tuple[tuple[int, ...], int], Weights] = {}
        self._forgotten: dict[tuple[int, ...], int] = {}

    def at(self, times: list[int], t: int) -> Weights:
        """The weights of the rows of `times` at step t."""
        key = (tuple(times), t)
        if key not in self._weights:
            self._weights[key] = numbers(self.forecaster(np.array(times, float), t))
        return self._weights[key]

    def following(self, times: list[int], t: int, progress: float | None) -> Weights:
        """The same where the gate's state is asked too: never remembered."""
        return numbers(self.forecaster(np.array(times, float), t, progress=progress))

    def append(self, times: list[int], step: int) -> None:
        """Add a computed step to `times`, and drop those that no forecast reads from now on."""
        times.append(step)
        key = tuple(times)
        if key not in self._forgotten:
            self._forgotten[key] = forgotten(self.forecaster, times)
        del times[: self._forgotten[key]]

    def plan(self, mask: Iterable[bool], starts: Starts) -> None:
        """Ask for all that a sample with this mask will need, where networks begin at `starts`."""
        times: list[int] = []
        for step, computing in enumerate(mask):
            if step in starts:
                times = []
            if computing:
                self.append(times, step)
            else:
                self.at(times, step)
