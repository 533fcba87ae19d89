"""The memory of one guidance branch: what was computed, the cached features, and states of gate and site."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from spectrum_bench.caching.history import History, tensors
from spectrum_bench.caching.weights import Remembered
from spectrum_bench.decisions import State
from spectrum_bench.forecasters import Weights
from spectrum_bench.signals import Signal

Own = TypeVar("Own")
Function = TypeVar("Function", bound=Callable[..., Any])


def not_compiled(function: Function) -> Function:
    """Keep a function out of torch.compile, which compiles the hooks of compiled blocks too."""
    wrapped: Function = torch.compiler.disable(function)
    return wrapped


class Branch:
    """The memory of one guidance branch of one denoiser.

    Attributes:
        computing: the decision about this step.
        computed: the steps that were computed.
        times: the computed steps whose features are not forgotten.
        histories: the cached features, one history for each slot; sites name the slots.
        state: the gate's state; None for a mask.
        output: the denoiser's output at the newest computed step, if the gate observes it.
    """

    def __init__(
        self,
        remembered: Remembered,
        state: State | None = None,
        progress: Callable[[], float | None] | None = None,
        history: Callable[[list[int]], History] = lambda times: History(),
    ):
        self._remembered, self.state, self._progress = remembered, state, progress
        self.computing = True
        self.computed: list[int] = []
        self.times: list[int] = []
        self.histories: defaultdict[str, History] = defaultdict(partial(history, self.times))
        self.weights: Weights = ()
        self.output: Tensor | None = None
        self.late: dict[Signal, Tensor] = {}  # signals of the newest computed step that came after its decision
        self._own: dict[tuple[type, str], Any] = {}
        self.seen: tuple[int, object] | None = None  # the newest step, and shape and dtype of its latent

    def continues(self, step: int, latent: Tensor) -> bool:
        """Whether this branch ran at the step before, on a latent of the same shape and dtype. If guidance ends or
        begins in mid-run, the batch changes or a branch is left out, and the branch must start anew."""
        return self.seen is not None and step - self.seen[0] <= 1 and self.seen[1] == kind_of(latent)

    def begin(self, step: int, computing: bool) -> None:
        """Record the decision about a step, and compute the weights of a skipped step's forecast."""
        self.computing = computing or not self.times
        if self.computing:
            self.computed.append(step)
            self._remembered.append(self.times, step)
        elif self._progress is None:
            self.weights = self._remembered.at(self.times, step)
        else:
            self.weights = self._remembered.following(self.times, step, self._progress())

    def note_skipped(self, step: int) -> None:
        """Correct the record of a step that other people's code has skipped."""
        self.computing = False
        self.computed.remove(step)

    def own(self, kind: type[Own], slot: str = "") -> Own:
        """A site's own state, a dataclass, one for each class and slot. It is made on first use, and its tensors count
        as cache."""
        key = (kind, slot)
        if key not in self._own:
            self._own[key] = kind()
        state: Own = self._own[key]
        return state

    @not_compiled
    def store(self, slot: str, feature: Tensor) -> None:
        """Append a computed step's feature to the slot's history."""
        history = self.histories[slot]
        history.append(feature)
        history.forget(len(self.times))

    def refresh(self, slot: str, tokens: Tensor, values: Tensor) -> None:
        """Put (B, k, D) values at the (B, k) tokens of the newest feature."""
        self.histories[slot].refresh(tokens, values)

    def forecast(self, slot: str) -> Tensor:
        """The feature at a skipped step."""
        return self.histories[slot].combine(self.weights)

    @property
    def nbytes(self) -> int:
        """Bytes of the histories and of every tensor in the states of gate and site."""
        states = {id(tensor): tensor.nbytes for tensor in tensors([self.output, self.late, self.state, self._own])}
        return sum(states.values()) + sum(history.nbytes for history in self.histories.values())


def kind_of(latent: Tensor) -> object:
    """Shape and dtype of a latent; None if it is no tensor."""
    return (latent.shape, latent.dtype) if isinstance(latent, Tensor) else None
