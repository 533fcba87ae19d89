"""When to compute, decided while the model runs: one function a paper, beside the state that it keeps.

`@gate(observes=..., state=...)` makes a method of a function

    name(step, T, seen, state, *, <constants>) -> bool      whether to compute this step

and calling the method with its constants gives a Gate: `first_block(threshold=0.08)`. The function is asked once a step
and guidance branch. Step 0 is the noisiest, T is the number of steps; `seen` holds the signals that it observes;
`state` is the branch's own, new for every sample, and the tensors in it count as cache. Step 0 is computed whatever a
gate says. A constant that is annotated with one of the types below is checked before a model loads.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import numpy as np
from torch import Tensor

from spectrum_bench import checks
from spectrum_bench.errors import BadValue
from spectrum_bench.forecasters import taylor
from spectrum_bench.schedules import Schedule, calibrated
from spectrum_bench.signals import ENTERING, LATENT, MODULATED, OUTPUT, PROBE, TIMESTEP, Signal

# ---------------------------------------------------------------------------------------------------------------------
# The types of constants: a check (name, value) that raises BadValue


def _share_of_steps(name: str, value: object) -> None:
    if not (checks.is_number(value) and 0 <= value <= 1):
        raise BadValue(f"{name} must be a share of the steps in [0, 1], not {value}")


Threshold = Annotated[float, functools.partial(checks.number, least=0)]
Steps = Annotated[int, functools.partial(checks.whole, least=0)]
Share = Annotated[float, _share_of_steps]


def _measured(method: str) -> Callable[[str, object], None]:
    """The check of numbers that a model is measured for, by the name of the algorithm."""
    return lambda name, value: calibrated(method, value)


# ---------------------------------------------------------------------------------------------------------------------
# Gates

Seen = Mapping[Signal, Tensor]


@dataclass
class State:
    """What one gate keeps in one guidance branch during one sample."""

    T: int  # number of steps


class Verifier(State):
    """The state of a gate that lets the site verify a forecast (SpeCa's)."""

    @property
    def verifies(self) -> bool:
        """Whether this skipped step's forecast is to be verified."""
        raise NotImplementedError

    def verify(self, forecast: Tensor, real: Tensor) -> None:
        """Take note of a forecast and of the truth."""
        raise NotImplementedError

    @property
    def rejects(self) -> bool:
        """Whether this step's forecast was so wrong that the step itself is to be computed."""
        raise NotImplementedError

    def note_computed(self) -> None:
        """The step is computed after all."""
        raise NotImplementedError


class Progressing(State):
    """The state of a gate that tells a forecaster how far the feature has come (DiCache's)."""

    def progress(self) -> float | None:
        """In units of the distance between the two newest computed steps, from the older one; None before there are
        two."""
        raise NotImplementedError


S = TypeVar("S", bound=State)
Rule = Callable[..., bool]


class Method(Generic[S]):
    """A decision rule that waits for its constants; calling it gives a Gate. It has the function's name, and of its
    signature the constants."""

    __name__: str
    __qualname__: str
    rule: Rule

    def __init__(self, rule: Rule, observes: tuple[Signal, ...], state: type[S], shared: bool):
        functools.update_wrapper(self, rule)
        self.rule, self.observes, self.state, self.shared = rule, observes, state, shared
        parameters = [p for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY]
        self.__signature__ = inspect.Signature(parameters)
        hints = get_type_hints(rule, include_extras=True)
        self._checks = {p.name: getattr(hints.get(p.name), "__metadata__", ()) for p in parameters}

    def __call__(self, **constants: Any) -> "Gate[S]":
        """The gate with these constants.

        Raises:
            BadValue: a constant that is unknown, missing or makes no sense, or that this model is not measured for.
        """
        values = checks.arguments(self.__name__, self.__signature__, **constants).arguments
        for name, value in values.items():
            for check in self._checks[name]:
                check(name, value)
        return Gate(self, {name: _plain(value) for name, value in values.items()})

    def __reduce__(self) -> str:
        return self.__qualname__  # pickled by name, as functions are


def _plain(value: Any) -> Any:
    """A list of the configuration as a list of Python's own, which is faster to read in every step."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@dataclass(frozen=True)
class Gate(Generic[S]):
    """A decision rule with its constants: a schedule that decides while the model runs."""

    method: Method[S]
    constants: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.method.__name__

    @property
    def observes(self) -> tuple[Signal, ...]:
        return self.method.observes

    @property
    def shared(self) -> bool:
        """Whether the second guidance branch follows the first one's decision."""
        return self.method.shared

    def start(self, T: int) -> S:
        """The state of a branch before the first of T steps."""
        return self.method.state(T)

    def decide(self, step: int, seen: Seen, state: S) -> bool:
        """Whether to compute this step."""
        return self.method.rule(step, state.T, seen, state, **self.constants)


def gate(*, observes: tuple[Signal, ...] = (), state: type[S], shared: bool = False) -> Callable[[Rule], Method[S]]:
    """Make a method of a decision rule.

    Args:
        observes: the signals that `seen` holds.
        state: its class; one is made for every guidance branch of every sample.
        shared: the second guidance branch follows the first one's decision.
    """
    return lambda rule: Method(rule, observes, state, shared)


# ---------------------------------------------------------------------------------------------------------------------
# Methods


@gate(state=State)
def observed(step: int, T: int, seen: Seen, state: State) -> bool:
    """Somebody else's code decides (peers.py); what it computed is observed."""
    return True


def is_observed(schedule: Schedule) -> bool:
    """Whether the schedule leaves the decision to somebody else's code."""
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
    polynomial: Annotated[Sequence[float], _measured("teacache")],
    first: Steps = 1,
    last: Steps = 1,
) -> bool:
    """TeaCache (arXiv:2411.19108, eq. 7; ali-vilab/TeaCache@7c10efc): compute when the rescaled relative changes of the
    modulated input, summed since the last computed step, reach `threshold`.

    Args:
        threshold: in units of relative change of the block stack's output.
        polynomial: highest power first; estimates that change from the signal's. Fitted for one model: another model's
            polynomial is another method.
        first, last: how many steps at either end are computed in any case.
    """
    change = relative_change(seen[MODULATED], state.modulated)
    state.modulated = seen[MODULATED]
    state.total += float(np.polyval(polynomial, change))
    if first <= step < T - last and state.total < threshold:
        return False
    state.total = 0.0
    return True


@dataclass
class FirstBlockState(State):
    added: Tensor | None = None  # by the front blocks, at the last computed step


@gate(observes=(ENTERING, PROBE), state=FirstBlockState)
def first_block(step: int, T: int, seen: Seen, state: FirstBlockState, *, threshold: Threshold) -> bool:
    """First-block cache (chengzeyi/ParaAttention; diffusers@58eb52c, FirstBlockCacheConfig): compute unless what the
    front blocks add is within `threshold` of what they added at the last computed step. Nothing is summed up."""
    added = seen[PROBE] - seen[ENTERING]
    if state.added is not None and distance(added, state.added) < threshold:
        return False
    state.added = added
    return True


@dataclass
class EasyCacheState(State):
    computed: bool = False  # the step before
    latent: Tensor | None = None  # of the step before
    x: Tensor | None = None  # the latent at the newest computed step whose output is known
    v: Tensor | None = None  # that output
    rate: Tensor | None = None  # how far the output moves for a move of the latent
    total: float = 0.0


@gate(observes=(LATENT, OUTPUT), state=EasyCacheState, shared=True)
def easycache(
    step: int, T: int, seen: Seen, state: EasyCacheState, *, threshold: Threshold, first: Steps, last: Steps = 1
) -> bool:
    """EasyCache (arXiv:2507.02860, H-EmbodVis/EasyCache): the output is taken to move as it did for the latent's move
    between the last two computed steps; compute when these estimates, summed, reach `threshold`."""
    x, v = seen[LATENT], seen.get(OUTPUT)
    before, state.latent = state.latent, x
    if state.computed and v is not None and before is not None:  # v is new, and `before` is what it was computed from
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
    probe: Tensor | None = None  # of the step before
    entering: Tensor | None = None  # of the step before
    residual: Tensor | None = None  # what the front blocks add, in this step
    residuals: list[Tensor] = field(default_factory=list)  # and at the last two computed steps

    def progress(self) -> float | None:
        if len(self.residuals) < 2 or self.residual is None:
            return None
        (P1, P2), P = self.residuals, self.residual
        return float((P - P1).abs().mean() / (P2 - P1).abs().mean())


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
) -> bool:
    """DiCache (arXiv:2508.17356, Bujiazi/DiCache): compute when the probe's relative changes from step to step, summed,
    reach `threshold`. `minus`: count |probe's change - input's change|. The forecaster `aligned` asks the state for the
    probe's progress."""
    change, state.probe = relative_change(seen[PROBE], state.probe), seen[PROBE]
    if minus:
        change = abs(change - relative_change(seen[ENTERING], state.entering))
        state.entering = seen[ENTERING]
    state.total += change
    state.residual = seen[PROBE] - seen[ENTERING]
    if math.floor(retention * T) < step < T - last and state.total < threshold:
        return False
    state.residuals = [*state.residuals, state.residual][-2:]
    state.total = 0.0
    return True


@dataclass
class ConfidenceState(State):
    times: list[int] = field(default_factory=list)  # of the steps at which the test failed
    probes: list[Tensor] = field(default_factory=list)  # at these steps


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
    """Confidence-gated Taylor (arXiv:2508.02240; PaddleMIX, CG-Taylor): the front block is forecast too, from the
    steps at which this test failed; compute unless that forecast is within `threshold` of the truth. The published
    file compares a tensor with False by identity, so that nothing would ever be skipped: here is what it means."""
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
    timesteps: Annotated[Sequence[float], _measured("sencache")],
    latent: Annotated[Sequence[float], _measured("sencache")],
    time: Annotated[Sequence[float], _measured("sencache")],
) -> bool:
    """SenCache (arXiv:2602.24208, vita-epfl/SenCache): compute when latent and timestep have moved so far since the
    last computed step that the output, by its measured sensitivities to both, has moved by `threshold` (RMS).

    Args:
        threshold, start: `start` holds in the first fifth of the steps.
        longest: fewer steps than this are skipped in a row.
        timesteps, latent, time: where the sensitivities were measured, to the latent and to the timestep.
    """
    z, t = seen[LATENT], float(seen[TIMESTEP].flatten()[0])
    if state.z is not None:
        near = int(np.abs(np.array(timesteps) - state.t).argmin())
        moved = latent[near] * float((z - state.z).float().norm()) + time[near] * abs(t - state.t)
        limit = (start if step < 0.2 * T else threshold) * z.numel() ** 0.5
        if moved < limit and state.skipped < longest:
            state.skipped += 1
            return False
    state.z, state.t, state.skipped = z, t, 0
    return True


@dataclass
class SpeCaState(Verifier):
    skipped: int = 0  # steps in a row
    verifying: bool = False
    error: float | None = None  # of the forecast that was verified last; None once it has been read
    limit: float = math.inf  # an error above it is put right in the step itself

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
    """SpeCa (arXiv:2509.11628; Shenyi-Z/Cache4Diffusion@91a1949): once `shortest` steps in a row are skipped, the last
    block runs as well and its forecast is verified; compute when its error exceeds threshold decay^(step / T), at
    least `least`, or after `longest` skipped steps.

    As in the published code the step after a computed one is always skipped, even among the `first`, and an error takes
    effect at the next step. `immediate`, as the paper has it: the step itself is computed.
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


# ---------------------------------------------------------------------------------------------------------------------


def relative(forecast: Tensor, real: Tensor) -> float:
    """SpeCa's error: mean |forecast - real| / |real|, element by element, hence its large thresholds."""
    return float(((forecast - real).abs() / (real.abs() + 1e-10)).float().mean())


def relative_change(new: Tensor, old: Tensor | None) -> float:
    """The distance to the tensor of the step before; nan at the first step."""
    return math.nan if old is None else distance(new, old)


def distance(new: Tensor, old: Tensor) -> float:
    """mean |new - old| / mean |old|."""
    return float((new - old).abs().mean() / old.abs().mean())


def size(tensor: Tensor) -> Tensor:
    """mean |tensor|."""
    return tensor.abs().mean()
