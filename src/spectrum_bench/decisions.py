"""What makes a gate of a function: its state, its checked constants, and the Gate that a session asks.

`@gate(observes=..., state=...)` makes a Method of a function

    name(step, T, seen, state, *, <constants>) -> bool      whether to compute this step

and calling the method with its constants gives a Gate: `first_block(threshold=0.08)`. The session calls the function
once a step and guidance branch. Step 0 is the noisiest, T is the number of steps; `seen` holds the signals that the
gate observes; `state` belongs to the branch, is new for every sample, and the tensors in it count as cache. Step 0 is
always computed. A constant that is annotated with one of the types below is checked before a model loads.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

from torch import Tensor

from spectrum_bench import checks
from spectrum_bench.errors import BadValue
from spectrum_bench.schedules import calibrated
from spectrum_bench.signals import Signal

# ---------------------------------------------------------------------------------------------------------------------
# The types of constants. Each holds a check, a function (name, value) that raises BadValue


def _share_of_steps(name: str, value: object) -> None:
    if not (checks.is_number(value) and 0 <= value <= 1):
        raise BadValue(f"{name} must be a share of the steps in [0, 1], not {value}")


Threshold = Annotated[float, functools.partial(checks.number, least=0)]
Steps = Annotated[int, functools.partial(checks.whole, least=0)]
Share = Annotated[float, _share_of_steps]


def measured(method: str) -> Callable[[str, object], None]:
    """The check of constants that are measured for each model. `method` is the algorithm's name."""
    return lambda name, value: calibrated(method, value)


# ---------------------------------------------------------------------------------------------------------------------
# Gates

Seen = Mapping[Signal, Tensor]


@dataclass
class State:
    """The memory of a gate in one guidance branch, for one sample."""

    T: int  # number of steps, of the network that runs
    network: int = 0  # which of those that run by turns


class Verifier(State):
    """The state of a gate that asks the site to verify a forecast (SpeCa's)."""

    @property
    def verifies(self) -> bool:
        """Whether the site must verify the forecast of this skipped step."""
        raise NotImplementedError

    def verify(self, forecast: Tensor, real: Tensor) -> None:
        """Compare a forecast with the real output."""
        raise NotImplementedError

    @property
    def rejects(self) -> bool:
        """Whether the forecast of this step is so wrong that the step must be computed."""
        raise NotImplementedError

    def note_computed(self) -> None:
        """Note that a step which was to be skipped is computed."""
        raise NotImplementedError


class Progressing(State):
    """The state of a gate that tells a forecaster how far the feature has moved (DiCache's)."""

    def progress(self) -> float | None:
        """How far the feature has moved from the older of the two newest computed steps, in units of the distance
        between the two. None before there are two."""
        raise NotImplementedError


S = TypeVar("S", bound=State)
Rule = Callable[..., bool]


class Method(Generic[S]):
    """A decision rule without its constants; calling it with them gives a Gate. It has the function's name, and its
    signature holds the constants alone."""

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
            BadValue: a constant is unknown, missing or out of range, or has not been measured for this model.
        """
        values = checks.arguments(self.__name__, self.__signature__, **constants).arguments
        for name, value in values.items():
            for check in self._checks[name]:
                check(name, value)
        return Gate(self, {name: _plain(value) for name, value in values.items()})

    def __reduce__(self) -> str:
        return self.__qualname__  # pickle stores the name, as it does for functions


def _plain(value: Any) -> Any:
    """A list of the configuration as a Python list, which is faster to read in every step."""
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

    def start(self, T: int, network: int = 0) -> S:
        """The state of a branch at the beginning of a sample with T steps, or of a network's T steps of it."""
        return self.method.state(T, network)

    def decide(self, step: int, seen: Seen, state: S) -> bool:
        """Whether to compute this step."""
        return self.method.rule(step, state.T, seen, state, **self.constants)


def gate(*, observes: tuple[Signal, ...] = (), state: type[S], shared: bool = False) -> Callable[[Rule], Method[S]]:
    """Make a method of a decision rule.

    Args:
        observes: the signals that `seen` holds.
        state: the class of the state. Every guidance branch of every sample gets its own.
        shared: whether the second guidance branch follows the first one's decision.
    """
    return lambda rule: Method(rule, observes, state, shared)
