"""When to compute, decided while the model runs: one function a paper, beside the state that it keeps.

decisions.py describes such a function's arguments. A YAML names it by `_target_`, with constants, without `_partial_`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from torch import Tensor

from spectrum_bench.decisions import Gate, Progressing, Seen, Share, State, Steps, Threshold, Verifier, gate, measured
from spectrum_bench.distances import distance, read, relative, relative_change, size, waiting_change
from spectrum_bench.forecasters import taylor
from spectrum_bench.schedules import Schedule
from spectrum_bench.signals import ENTERING, LATENT, MODULATED, NOISE, OUTPUT, PROBE, TIMESTEP


@gate(state=State)
def observed(step: int, T: int, seen: Seen, state: State) -> bool:
    """Other people's code decides (peers.py). The session observes which steps it computes."""
    return True


def is_observed(schedule: Schedule) -> bool:
    """Whether the schedule leaves the decision to other people's code."""
    return isinstance(schedule, Gate) and schedule.method is observed


@dataclass
class AccumulatedState(State):
    total: float = 0.0
    modulated: Tensor | None = None  # of the step before


@gate(observes=(MODULATED,), state=AccumulatedState)
def accumulated(
    step: int,
    T: int,
    seen: Seen,
    state: AccumulatedState,
    *,
    threshold: Threshold,
    polynomial: Annotated[Sequence[float] | Sequence[Sequence[float]], measured("teacache")],
    first: Steps = 1,
    last: Steps = 1,
) -> bool:
    """TeaCache (arXiv:2411.19108, eq. 7; ali-vilab/TeaCache@7c10efc): compute when the rescaled relative changes of the
    modulated input, summed since the last computed step, reach `threshold`.

    Args:
        threshold: in units of relative change of the block stack's output.
        polynomial: highest power first; estimates that change from the signal's. Fitted for one model: another model's
            polynomial is another method. Networks that run by turns have one each.
        first, last: how many steps at either end are computed in any case.
    """
    change = relative_change(seen[MODULATED], state.modulated)
    state.modulated = seen[MODULATED]
    own = polynomial[state.network] if isinstance(polynomial[0], Sequence) else polynomial
    state.total += float(np.polyval(own, change)) if math.isfinite(change) else math.inf
    if first <= step < T - last and state.total < threshold:
        return False
    state.total = 0.0
    return True


@dataclass
class FirstBlockState(State):
    added: Tensor | None = None  # what the front blocks added at the last computed step


@gate(observes=(ENTERING, PROBE), state=FirstBlockState)
def first_block(step: int, T: int, seen: Seen, state: FirstBlockState, *, threshold: Threshold) -> bool:
    """First-block cache (chengzeyi/ParaAttention; diffusers@58eb52c, FirstBlockCacheConfig): compute unless what the
    front blocks add is within `threshold` of what they added at the last computed step. Changes are not summed."""
    added = seen[PROBE] - seen[ENTERING]
    if state.added is not None and distance(added, state.added) < threshold:
        return False
    state.added = added
    return True


@dataclass
class EasyCacheState(State):
    computed: bool = False  # whether the step before was computed
    latent: Tensor | None = None  # the latent of the step before
    x: Tensor | None = None  # the latent at the newest computed step whose output is known
    v: Tensor | None = None  # that output
    rate: Tensor | None = None  # how far the output moves when the latent moves by 1
    total: float = 0.0


@gate(observes=(LATENT, OUTPUT), state=EasyCacheState, shared=True)
def easycache(
    step: int, T: int, seen: Seen, state: EasyCacheState, *, threshold: Threshold, first: Steps, last: Steps = 1
) -> bool:
    """EasyCache (arXiv:2507.02860, H-EmbodVis/EasyCache): the output is assumed to move in proportion to the
    latent, as it did between the last two computed steps. Compute when the sum of these estimates reaches
    `threshold`."""
    x, v = seen[LATENT], seen.get(OUTPUT)
    before, state.latent = state.latent, x
    if state.computed and v is not None and before is not None:  # v is new and was computed from `before`
        if state.v is not None and state.x is not None:
            state.rate = size(v - state.v) / size(before - state.x)
        state.v, state.x = v, before
    state.computed = True
    if first <= step < T - last and state.rate is not None and v is not None and before is not None:
        state.total += float(state.rate * size(x - before) / size(v))
        state.computed = not state.total < threshold
    if state.computed:
        state.total = 0.0
    return state.computed


@dataclass
class DiCacheState(Progressing):
    total: float = 0.0
    probe: Tensor | None = None  # the probe of the step before
    entering: Tensor | None = None  # the embedded latent of the step before
    residual: Tensor | None = None  # what the front blocks add at this step
    residuals: list[Tensor] = field(default_factory=list)  # what they added at the last two computed steps
    gamma: float | None = None  # the probe's progress at this step

    def progress(self) -> float | None:
        still = self.gamma is None or not math.isfinite(self.gamma)  # between the two; it tells nothing
        return None if still else self.gamma

    def measured(self) -> Tensor | None:
        """The probe's progress while it is still on the device."""
        if len(self.residuals) < 2 or self.residual is None:
            return None
        (P1, P2), P = self.residuals, self.residual
        return size(P - P1) / size(P2 - P1)


@gate(observes=(ENTERING, PROBE), state=DiCacheState)
def dicache(
    step: int,
    T: int,
    seen: Seen,
    state: DiCacheState,
    *,
    threshold: Threshold,
    retention: Share,
    last: int = 1,
    minus: bool = False,
    beyond: bool = True,
) -> bool:
    """DiCache (arXiv:2508.17356, Bujiazi/DiCache): compute when the probe's relative changes from step to step, summed,
    reach `threshold`. `minus`: count |probe's change - input's change|. `beyond`: the step behind the retained ones is
    computed too, as in the code for FLUX; that for HunyuanVideo and Wan may skip it. The forecaster `aligned` asks the
    state for the probe's progress."""
    state.residual = seen[PROBE] - seen[ENTERING]
    probe = waiting_change(seen[PROBE], state.probe)
    entering = waiting_change(seen[ENTERING], state.entering) if minus else None
    change, moved, state.gamma = read(probe, entering, state.measured())
    state.probe = seen[PROBE]
    if minus:
        state.entering = seen[ENTERING]
    state.total += math.nan if change is None else change if moved is None else abs(change - moved)
    if math.floor(retention * T) + beyond <= step < T - last and state.total < threshold:
        return False
    state.residuals = [*state.residuals, state.residual][-2:]
    state.total = 0.0
    return True


@dataclass
class ConfidenceState(State):
    times: list[int] = field(default_factory=list)  # the steps at which the test failed
    probes: list[Tensor] = field(default_factory=list)  # the probes of these steps


@gate(observes=(PROBE,), state=ConfidenceState)
def confidence(
    step: int,
    T: int,
    seen: Seen,
    state: ConfidenceState,
    *,
    threshold: Threshold,
    order: int = 1,
    first: Steps = 5,
    last: Steps = 1,
) -> bool:
    """Confidence-gated Taylor (arXiv:2508.02240; PaddleMIX, CG-Taylor): the probe is forecast too, from the steps at
    which this test failed. Compute unless its forecast is within `threshold` of the truth. The published file compares
    a tensor with False by identity, so that it would never skip a step; this is what it means."""
    if step < first:
        return True
    times, probes, probe = state.times, state.probes, seen[PROBE]
    if probes and step < T - last:
        weights = taylor(np.array(times, float), step, order=order)
        forecast = sum(w * row for w, row in zip(weights.tolist(), probes, strict=True))
        if distance(forecast, probe) < threshold:
            return False
    times.append(step)
    probes.append(probe)
    del times[: -order - 1], probes[: -order - 1]
    return True


@dataclass
class SenCacheState(State):
    z: Tensor | None = None  # the latent at the last computed step
    t: float = math.nan  # its timestep
    skipped: int = 0  # steps in a row


@gate(observes=(LATENT, TIMESTEP), state=SenCacheState, shared=True)
def sencache(
    step: int,
    T: int,
    seen: Seen,
    state: SenCacheState,
    *,
    threshold: Threshold,
    start: Threshold,
    longest: Steps,
    timesteps: Annotated[Sequence[float], measured("sencache")],
    latent: Annotated[Sequence[float], measured("sencache")],
    time: Annotated[Sequence[float], measured("sencache")],
) -> bool:
    """SenCache (arXiv:2602.24208, vita-epfl/SenCache): compute when latent and timestep have moved so far since the
    last computed step that the output, by its measured sensitivities to both, has moved by `threshold` (RMS).

    Args:
        threshold, start: `start` is the threshold in the first fifth of the steps.
        longest: the most steps skipped in a row.
        timesteps: where the sensitivities were measured.
        latent, time: the sensitivities to the latent and to the timestep.
    """
    z = seen[LATENT]
    distance, t = read(None if state.z is None else (z - state.z).float().norm(), seen[TIMESTEP].flatten()[0])
    if state.z is not None:
        near = int(np.abs(np.array(timesteps) - state.t).argmin())
        moved = latent[near] * distance + time[near] * abs(t - state.t)
        limit = (start if step < 0.2 * T else threshold) * z.numel() ** 0.5
        if moved < limit and state.skipped < longest:
            state.skipped += 1
            return False
    state.z, state.t, state.skipped = z, t, 0
    return True


@dataclass
class BroadcastState(State):
    within: bool = False  # whether this step is in the middle, where attention is broadcast


@gate(observes=(NOISE,), state=BroadcastState)
def broadcast(
    step: int, T: int, seen: Seen, state: BroadcastState, *, interval: Steps, least: Share, most: Share
) -> bool:
    """Pyramid Attention Broadcast (arXiv:2408.12588; diffusers@58eb52c): compute every `interval`-th step, and all
    steps whose noise sigma, of 1 = sigma + alpha, is not between `least` and `most`."""
    sigma = 1 - 1 / (1 + float(seen[NOISE]))
    state.within = least < sigma < most
    return not state.within or step % max(interval, 1) == 0


@dataclass
class SpeCaState(Verifier):
    skipped: int = 0  # steps in a row
    verifying: bool = False
    error: float | None = None  # of the last verified forecast; None after the gate has read it
    limit: float = math.inf  # a larger error makes the site compute the step itself

    @property
    def verifies(self) -> bool:
        return self.verifying

    def verify(self, forecast: Tensor, real: Tensor) -> None:
        self.error = relative(forecast, real)

    @property
    def rejects(self) -> bool:
        return self.error is not None and self.error > self.limit

    def note_computed(self) -> None:
        self.skipped, self.verifying = 0, False


@gate(state=SpeCaState)
def speca(
    step: int,
    T: int,
    seen: Seen,
    state: SpeCaState,
    *,
    threshold: Threshold,
    decay: Threshold,
    shortest: Steps,
    longest: Steps,
    first: Steps,
    least: Threshold = 0.1,
    immediate: bool = False,
) -> bool:
    """SpeCa (arXiv:2509.11628; Shenyi-Z/Cache4Diffusion@91a1949): after `shortest` skipped steps in a row the last
    block runs too, and its forecast is verified. Compute when its error exceeds threshold decay^(step / T), which is
    never below `least`, or after `longest` skipped steps.

    As in the published code, the step after a computed one is always skipped, even among the `first`, and an error
    takes effect at the next step. With `immediate`, as in the paper, the step itself is computed.
    """
    error, state.error = state.error, None
    limit = max(threshold * decay ** (step / T), least)
    after_full = step > 0 and state.skipped == 0
    failed = state.skipped >= shortest and error is not None and not immediate and error > limit
    full = not after_full and (step < first or state.skipped >= longest or failed)
    state.verifying = not full and not after_full and state.skipped >= shortest
    state.skipped = 0 if full else state.skipped + 1
    state.limit = limit if state.verifying and immediate else math.inf
    return full
