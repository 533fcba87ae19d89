"""An algorithm: a schedule, a forecaster and a site under one name, and the checks that they fit together."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectrum_bench import checks
from spectrum_bench.caching.session import Session, cached
from spectrum_bench.caching.sites.base import Site
from spectrum_bench.decisions import Gate, Method
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.forecasters import Forecaster, forgotten, reuse
from spectrum_bench.gates import is_observed
from spectrum_bench.schedules import Mask, Schedule, Starts, bare, full, plan, supposed
from spectrum_bench.signals import FirstBlock, Front

LONGEST = 100  # steps after which the check of the forgetting rule stops


@dataclass(frozen=True)
class Algorithm:
    """A schedule, a forecaster and a site. Without a site it is the plain pipeline."""

    name: str
    schedule: Schedule
    forecaster: Forecaster
    site: Site | None

    def check(self, T: int) -> None:
        """Refuse an algorithm that would fail once the model runs, or would silently be another method. Needs no model.

        Raises:
            BadValue: a constant is out of range, unknown or missing, or has not been measured for this model.
            DoesNotFit: the parts do not fit together, or the forecaster reads a forgotten row.
        """
        if isinstance(bare(self.schedule), Method):
            raise BadValue(f"{bare(self.schedule).__name__} is a gate: leave _partial_ out of its YAML")
        if not isinstance(self.schedule, Gate):
            check_arguments(self.schedule, T)
        check_arguments(self.forecaster, np.arange(3.0), 4.0)
        weights_of(self.forecaster, [0, 1, 2], 4)
        mask = plan(self.schedule, T, supposed(self.schedule, T))
        if self.site is None:
            if mask is None or not mask.all():
                raise DoesNotFit(f"algo={self.name} caches nothing, so schedule=full is the only one for it")
            return
        if isinstance(self.schedule, Gate):
            check_gate(self.schedule, self.site, T)
        if self.forecaster(np.arange(3.0), 4.0).ndim > 2 and not self.site.bands:
            raise DoesNotFit(f"the forecaster of algo={self.name} weighs frequency bands apart: use site=bands")
        self.site.check(self.schedule, self.forecaster)
        if not self.site.decides:
            check_forgetting(self.forecaster, plausible(T) if mask is None else [mask])

    def computed_steps(self, T: int, starts: Starts) -> list[int] | None:
        """The computed steps of T, where networks that run by turns begin at `starts`; None if a gate decides."""
        mask = plan(self.schedule, T, starts)
        return None if mask is None else mask.nonzero()[0].tolist()

    def attach(self, pipe: Any, num_steps: int) -> AbstractContextManager[Session]:
        """Run the pipeline under this algorithm for one call; see `cached`."""
        return cached(pipe, schedule=self.schedule, forecaster=self.forecaster, site=self.site, num_steps=num_steps)


NOCACHE = Algorithm("nocache", full, reuse, None)  # the plain pipeline: the reference


def check_arguments(function: object, *arguments: Any) -> None:
    """Check the constants of a schedule or a forecaster.

    Raises:
        BadValue: a constant is unknown or missing.
    """
    plain, before = bare(function), getattr(function, "args", ())
    name, signature = getattr(plain, "__name__", type(plain).__name__), inspect.signature(plain)
    checks.arguments(name, signature, *before, *arguments, **getattr(function, "keywords", {}))


def check_gate(gate: Gate[Any], site: Site, T: int) -> None:
    """Refuse a gate that observes a place which the site does not run. Calls the gate once, with tensors of a single 1.

    Raises:
        DoesNotFit: the gate and the site do not fit; the message names the fix.
    """
    if is_observed(gate) and not site.decides:
        raise DoesNotFit("schedule=observed is for what decides by itself: algo=diffusers_* or cachedit_* alone")
    places = {signal.place for signal in gate.observes}
    if Front in places and not site.front:
        raise DoesNotFit(
            f"{gate.name} observes the front blocks, and this site does not run them: use site=tail_residual"
        )
    if FirstBlock in places and not site.runs_blocks:
        raise DoesNotFit(
            f"{gate.name} observes the first block, and this site does not run it: use site=stack_residual"
        )
    gate.decide(0, {signal: torch.ones(1, 1, 1) for signal in gate.observes}, gate.start(T))


def plausible(T: int) -> list[Mask]:
    """Masks like those that a gate may decide: every second, third and fifth step, one of them after a warm-up."""
    steps = np.arange(T)
    return [steps % 2 == 0, (steps < 5) | (steps % 3 == 0), steps % 5 == 0]


def check_forgetting(forecaster: Forecaster, masks: list[Mask]) -> None:
    """Refuse a forecaster whose forecast from the remaining rows differs from its forecast from all rows.

    Raises:
        DoesNotFit: a later step reads a row whose weight was 0 one step ahead, or the number of weights is wrong.
    """
    name = name_of(forecaster)
    for step, times, remaining in chain.from_iterable(skipped_steps(forecaster, mask) for mask in masks):
        whole, part = weights_of(forecaster, times, step), weights_of(forecaster, remaining, step)
        if whole[: -len(remaining)].any() or not np.allclose(whole[-len(remaining) :], part, rtol=1e-6, atol=1e-9):
            raise DoesNotFit(
                f"{name} reads at step {step} a row that is forgotten by then, because its weight is 0 one step after "
                f"step {times[-1]}: give it another weight there, or 0 at every later step too"
            )


def weights_of(forecaster: Forecaster, times: Sequence[int], step: int) -> NDArray[Any]:
    """The weights of a forecast.

    Raises:
        DoesNotFit: they are no array with one finite weight, or one for each part, for each row.
    """
    name, weights = name_of(forecaster), forecaster(np.array(times, float), float(step))
    if not isinstance(weights, np.ndarray) or weights.dtype.kind not in "fiu" or not weights.ndim:
        raise DoesNotFit(f"{name} must return a NumPy array of numbers, one weight a row, not {type(weights).__name__}")
    if len(weights) != len(times):
        raise DoesNotFit(f"{name} returns {len(weights)} weights for {len(times)} rows: return one a row")
    if not np.isfinite(weights).all():
        raise DoesNotFit(f"{name} returns weights at step {step} that are not finite")
    return weights


def name_of(forecaster: Forecaster) -> str:
    return getattr(bare(forecaster), "__name__", "the forecaster")


def skipped_steps(forecaster: Forecaster, mask: Mask) -> Iterator[tuple[int, list[int], list[int]]]:
    """For every skipped step before LONGEST: (step, all computed steps, the computed steps whose rows remain)."""
    times: list[int] = []
    remaining: list[int] = []
    for step, computing in enumerate(mask[:LONGEST].tolist()):
        if computing:
            times.append(step)
            remaining.append(step)
            del remaining[: forgotten(forecaster, remaining)]
        else:
            yield step, times, remaining
