"""A correction of the latent as an option of every site, from what a computed step tells about skipped ones."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrum_bench import checks
from spectrum_bench.caching.history import History
from spectrum_bench.caching.propagation import Matrix, propagator, watch
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Around
from spectrum_bench.caching.sites.solver import SchedulerSite, keep
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.forecasters import Forecaster
from spectrum_bench.schedules import Schedule


@dataclass(frozen=True)
class Corrected(Around):
    """Another site, whose forecasts are revised. When a step is computed, the guided outputs of the steps skipped
    before it move towards the line between the computed outputs on both sides, and the latent becomes what the
    scheduler makes of the revised outputs. No pass is added. Keeps the guided output of every step.

    Attributes:
        site: the site that forecasts.
        strength: how far the outputs move; 0 leaves them as they were forecast, 1 puts them on the line.
        guard: how much the strength falls where a correction takes back the one before it. The network sees a
            correction only at the next computed step, and with strong guidance its answer may overshoot: if it takes
            back g times the last correction, the strength is divided by 1 + guard g. One for all samples of a batch.
    """

    strength: float = 1.0
    guard: float = 1.0

    @property
    def at_scheduler(self) -> bool:
        return True

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        if isinstance(self.site, (SchedulerSite, Corrected)):
            raise DoesNotFit(f"site={type(self.site).__name__} corrects the latent itself: leave correct= out")
        if not (checks.is_number(self.strength) and 0 <= self.strength <= 1):
            raise BadValue(f"correct.strength must be a number in [0, 1], not {checks.brief(self.strength)}")
        checks.number("correct.guard", self.guard, 0)
        self.site.check(schedule, forecaster)

    def attach_scheduler(self, scheduler: Any, session: Session, undo: ExitStack) -> None:
        self.site.attach_scheduler(scheduler, session, undo)
        begun: list[Revised] = []
        session.held_elsewhere.append(lambda: sum(outputs.nbytes for outputs in begun))

        def advance(output: Tensor, latent: Tensor, following: Tensor) -> Tensor:
            computed, begins = session.step in session.computed_steps, session.step == session.since
            begun[0].append(output, latent, computed, begins)
            return begun[0].latent(session.step + 1, following)

        watch(scheduler, lambda: begun.append(Revised(propagator(scheduler), self.strength, self.guard)), advance, undo)


@dataclass
class Revised:
    """The guided outputs of one sample, and what computed steps have made of the skipped ones.

    Attributes:
        rows: x_0 and the output of each step so far, as the scheduler got it.
        weights: (T, T); row s holds the weights of the outputs in the revised output of step s.
        newest: the newest computed step.
        applied: how far the newest correction has moved the latent; None before the first one.
    """

    matrix: Matrix
    strength: float
    guard: float
    rows: History = field(default_factory=History)
    newest: int = 0
    applied: Tensor | None = None
    weights: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = np.eye(len(self.matrix) - 1)

    def append(self, output: Tensor, latent: Tensor, computed: bool, begins: bool = False) -> None:
        """The scheduler has made a step from `latent` with `output`. A network that begins corrects nothing that
        another one's outputs were forecast from."""
        keep(self.rows, output, latent)
        step = len(self.rows) - 2
        if computed:
            if self.strength and step > self.newest + 1 and not begins:
                self._correct(step)
            self.newest = step

    def _correct(self, step: int) -> None:
        """Revise the skipped outputs between the newest computed step and this one."""
        whole = revised(self.weights, self.newest, step, 1.0) - self.weights
        change = np.append(0, self.matrix[step, 1:] @ whole)[: len(self.rows)]
        correction = self.rows.combine(change).float()
        strength = self.strength / (1 + self.guard * self._gain(correction))
        self.weights = revised(self.weights, self.newest, step, strength)
        self.applied = strength * correction

    def _gain(self, correction: Tensor) -> float:
        """How much of the correction before this one takes back; 0 if they point the same way."""
        if self.applied is None or not self.guard:
            return 0.0
        back = -torch.vdot(correction.flatten(), self.applied.flatten()) / self.applied.square().sum().clamp_min(1e-30)
        return max(0.0, float(back))

    @property
    def nbytes(self) -> int:
        """Bytes of the outputs and of the newest correction."""
        return self.rows.nbytes + (0 if self.applied is None else self.applied.nbytes)

    def latent(self, step: int, following: Tensor) -> Tensor:
        """The latent before a step, as the scheduler makes it of the revised outputs.

        Args:
            following: as the scheduler itself has made it, which is right until an output is revised.
        """
        if self.applied is None:
            return following
        row = self.matrix[step]
        weights = np.append(row[0], row[1:] @ self.weights)[: len(self.rows)]
        return self.rows.combine(weights).to(following.dtype)


def revised(weights: NDArray[np.float64], before: int, behind: int, strength: float) -> NDArray[np.float64]:
    """The weights with the rows of the steps between two computed ones, `before` and `behind`, moved towards the line
    between these."""
    out = weights.copy()
    for step in range(before + 1, behind):
        share = strength * (step - before) / (behind - before)
        out[step, [before, step, behind]] = strength - share, 1 - strength, share
    return out
