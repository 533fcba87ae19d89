"""Sites at the scheduler: the guided output is cached, and a skipped step runs neither the denoiser nor its epilogue.

A skipped step is not an approximate network pass here but a part of one larger step of the solver. The latent is set
from x_0 and all outputs so far, so that a new output corrects what earlier skipped steps assumed.
"""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from spectrum_bench import checks
from spectrum_bench.anatomy import Anatomy
from spectrum_bench.caching.history import History
from spectrum_bench.caching.propagation import Matrix, propagator, watch
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, replace_forward
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.forecasters import Forecaster
from spectrum_bench.schedules import ALONE, Schedule, Starts, calibrated


@dataclass
class Given:
    """What the denoiser gave last in one branch. At a skipped step the pipeline's guidance gets it again, and what
    becomes of it is replaced."""

    output: Any = None


@dataclass
class Outputs:
    """The guided outputs of one sample.

    Attributes:
        rows: x_0, and the output of each computed step.
        steps: these steps.
        skipped: whether a step has been skipped.
        estimates: the weights of these outputs in every step's, (T, K); None until they are asked for.
    """

    rows: History = field(default_factory=History)
    steps: list[int] = field(default_factory=list)
    skipped: bool = False
    estimates: NDArray[np.float64] | None = None

    def note(self, session: Session, output: Tensor, latent: Tensor) -> None:
        """The scheduler has made a step from `latent` with `output`."""
        if session.step in session.computed_steps:
            self.steps.append(session.step)
            keep(self.rows, output, latent)
            self.estimates = None
        else:
            self.skipped = True


def keep(rows: History, output: Tensor, latent: Tensor) -> None:
    """Append a step's output; before the first one, the latent x_0. All have the dtype of x_0: some pipelines hold
    float32 latents beside a bfloat16 network, and in some the first step makes them bfloat16 too."""
    if not len(rows):
        rows.append(latent)
    rows.append(output.to(rows.dtype))


class SchedulerSite(Site):
    """A site that replaces the latent after skipped steps."""

    @property
    def runs_blocks(self) -> bool:
        return False

    @property
    def defers_control(self) -> bool:
        return True

    @property
    def at_scheduler(self) -> bool:
        return True

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        run = denoiser.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = session.branch.own(Given)
            if session.computing:
                given.output = run(*args, **kwargs)
            return given.output

        replace_forward(denoiser, forward, undo)


@dataclass(frozen=True)
class Solver(SchedulerSite):
    """The outputs of skipped steps are forecast, and forecast anew from the outputs on both sides when the next one is
    computed; the latent is what the scheduler's own matrix makes of them.

    With `forecasters.hindsight` the forecast is reuse ahead and linear interpolation behind. Re-weighting the past at a
    new output is also what UniPC's corrector does (arXiv:2302.04867).
    """

    def attach_scheduler(self, scheduler: Any, session: Session, undo: ExitStack) -> None:
        outputs = Outputs()
        session.held_elsewhere.append(lambda: outputs.rows.nbytes)
        matrix: list[Matrix] = []

        def advance(output: Tensor, latent: Tensor, following: Tensor) -> Tensor:
            outputs.note(session, output, latent)
            if not outputs.skipped:
                return following  # exact until then
            row = matrix[0][session.step + 1]
            if outputs.estimates is None:
                outputs.estimates = estimates(session.forecaster, outputs.steps, session.num_steps, session.starts)
            return outputs.rows.combine(np.append(row[0], row[1:] @ outputs.estimates)).to(following.dtype)

        watch(scheduler, lambda: matrix.append(propagator(scheduler)), advance, undo)


def estimates(forecaster: Forecaster, computed: list[int], T: int, starts: Starts = ALONE) -> NDArray[np.float64]:
    """The weights (T, K) of the K computed outputs in the output of every step. A skipped step is forecast from its own
    network's outputs up to the first computed one behind it; for a step behind all of them that is all."""
    out, times = np.zeros((T, len(computed))), np.array(computed, float)
    for start, end in zip(starts, [*starts[1:], T], strict=True):
        first, last = bisect_left(computed, start), bisect_left(computed, end)
        for step in range(start, end if first < last else start):
            known = min(bisect_left(computed, step) + 1, last)
            if step in computed:
                out[step, known - 1] = 1
            else:
                out[step, first:known] = forecaster(times[first:known], float(step))
    return out


@dataclass(frozen=True)
class FittedSolver(SchedulerSite):
    """Each gap is one step of a linear multistep solver whose coefficients were fitted for this model and these steps
    (lab/hindcast.py): x at the next computed step is a x_0 + sum_i b_i v_i. A network that takes over from another
    begins anew: x_0 is then the latent that it begins from.

    The family of solvers is that of Bespoke Non-Stationary solvers (arXiv:2403.01329), whose coefficients are trained.

    Attributes:
        coefficients: for each gap a, then b of each output so far. More gaps may follow than have coefficients; there
            the scheduler's own latent stays.
        steps: the computed steps that they were fitted for.
        method: the name of the calibration in messages.
        solver: whose coefficients they are, for labels.
    """

    coefficients: Sequence[Sequence[float]] | None
    steps: Sequence[int] | None
    method: str = "hindcast"
    solver: str = "hindcast"

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        calibrated(self.method, self.steps)
        if getattr(schedule, "keywords", {}).get("steps") != self.steps:
            raise DoesNotFit(f"the coefficients belong to the steps that they were fitted for: use algo={self.method}")
        count = 1
        for gap, row in enumerate(self.coefficients or ()):
            if len(row) not in (2, count + 1) or not all(map(checks.is_number, row)):
                raise BadValue(
                    f"coefficients of gap {gap} must be {count + 1} numbers, or 2 where a network begins: calibrate "
                    "algo=hindcast anew"
                )
            count = len(row)

    def attach_scheduler(self, scheduler: Any, session: Session, undo: ExitStack) -> None:
        outputs, gaps = Outputs(), list(self.coefficients or ())
        session.held_elsewhere.append(lambda: outputs.rows.nbytes)

        def advance(output: Tensor, latent: Tensor, following: Tensor) -> Tensor:
            if session.step == session.since:
                outputs.rows = History()
            outputs.note(session, output, latent)
            gap = len(outputs.steps) - 1
            if not session.ends_gap or gap >= len(gaps):
                return following
            if len(gaps[gap]) != len(outputs.rows):
                raise DoesNotFit(
                    f"the coefficients of {self.method} are for networks that take over at another step: calibrate "
                    f"algo={self.method} with this scheduler and num_inference_steps={session.num_steps}"
                )
            return outputs.rows.combine(np.array(gaps[gap])).to(following.dtype)

        watch(scheduler, lambda: None, advance, undo)
