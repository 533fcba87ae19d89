"""The guided output, corrected by the average velocity of the steps before (MeanCache)."""

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectrum_bench import checks
from spectrum_bench.caching.noise import sigma_before
from spectrum_bench.caching.replacing import replace_method
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.solver import SchedulerSite
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.forecasters import Forecaster, reuse
from spectrum_bench.schedules import Schedule, bare

Step = tuple[Tensor, float, Tensor]  # the latent before a step, its noise level, and the output that the step took


@dataclass(frozen=True)
class MeanVelocity(SchedulerSite):
    """A skipped step takes v - J (s' - s): v the output of the step before, J = (v_K - u) / (s - s_K) how v changes
    with the noise level s, v_K the output K steps ago and u = (x - x_K) / (s - s_K) the average velocity since
    (MeanCache, arXiv:2601.19961; UnicomAI/MeanCache@2e12280, Mc_qwenimage.py). With K = 1 an Euler step reuses v.
    Driven beside that code through 50 Euler steps of a toy network with its mask of 10, the latents are equal to the
    bit.

    Attributes:
        span: K, or one K for each gap, in the order of the computed steps that the gaps begin with.
    """

    span: int | Sequence[int] = 4

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        for span in self.span if isinstance(self.span, Sequence) else (self.span,):
            checks.whole("span", span, 0)
        if bare(forecaster) is not reuse:
            raise DoesNotFit("the average velocity is a forecast of its own: use algo=meancache, or site=solver")

    def attach_scheduler(self, scheduler: Any, session: Session, undo: ExitStack) -> None:
        step, taken = scheduler.step, deque[Step](maxlen=self._longest())
        session.held_elsewhere.append(lambda: sum(x.nbytes + v.nbytes for x, _, v in taken))

        def corrected(output: Tensor, timestep: Any, latent: Tensor, *args: Any, **kwargs: Any) -> Any:
            if session.step == session.since:
                taken.clear()  # another network's outputs
            s, after = (float(sigma_before(scheduler, session.step + i)) for i in (0, 1))
            if session.step not in session.computed_steps:
                output = predict(taken, latent, s, after, self._span(session)).to(output.dtype)
            taken.append((latent, s, output))
            return step(output, timestep, latent, *args, **kwargs)

        replace_method(scheduler, "step", corrected, undo)

    def _longest(self) -> int:
        return max(self.span) if isinstance(self.span, Sequence) else self.span

    def _span(self, session: Session) -> int:
        if not isinstance(self.span, Sequence):
            return self.span
        gap = len(session.computed_steps) - 1
        if gap >= len(self.span):
            raise BadValue(f"site.span has {len(self.span)} numbers, but step {session.step} is in gap {gap + 1}")
        return self.span[gap]


def predict(taken: Sequence[Step], x: Tensor, s: float, after: float, span: int) -> Tensor:
    """The output of a step from noise level `s` to `after` at the latent x, in fp32."""
    x_K, s_K, v_K = taken[-min(span, len(taken))]
    u = (x.float() - x_K.float()) / (s - s_K)
    J = (v_K.float() - u) / (s - s_K)
    return taken[-1][2].float() - J * (after - s)
