"""What a gate observes, and where in a step it is known.

The denoiser passes three places in every step: its call, its first block, and the end of the blocks that a site runs at
every step. A signal is read from what is at hand at one of them, or reported by hooks of its own; a gate decides at the
last place that one of its signals needs. Only the signals that the gate observes are read and attached.

A new signal is one entry here and a name in a gate's `observes`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy
from spectrum_bench.errors import DoesNotFit


class Place:
    """A point that the denoiser passes once a step and guidance branch; its attributes are what is at hand there."""

    order: ClassVar[int]


@dataclass(frozen=True)
class Call(Place):
    """The denoiser is about to run.

    Attributes:
        latent: what the denoiser is given.
        timestep: the noise level, in the denoiser's own units.
        output: what the denoiser gave at this branch's newest computed step; None before, and where nobody observes it.
    """

    order: ClassVar[int] = 0
    latent: Tensor
    timestep: Tensor
    output: Tensor | None


@dataclass(frozen=True)
class FirstBlock(Place):
    """The first block is about to run.

    Attributes:
        block: the first block.
        arguments: its arguments by name; "hidden_states" are the image or video tokens whatever the block calls them.
        anatomy: what is known of this class of denoiser.
    """

    order: ClassVar[int] = 1
    block: nn.Module
    arguments: dict[str, Any]
    anatomy: Anatomy


@dataclass(frozen=True)
class Front(Place):
    """The blocks that the site runs at every step have run.

    Attributes:
        hidden: the image or video tokens that they gave, (B, L, D).
    """

    order: ClassVar[int] = 2
    hidden: Tensor


Report = Callable[[Tensor], None]
Attach = Callable[[nn.Module, Anatomy, Report, ExitStack], None]


@dataclass(frozen=True, eq=False)
class Signal:
    """One quantity of the running model.

    Attributes:
        name: for messages.
        place: where in a step it is known: Call, FirstBlock or Front.
        read: takes it from what is at hand at `place`; None where there is nothing yet.
        attach: for what no place shows. (denoiser, anatomy, report, undo): hook the denoiser, push onto `undo` what
            takes the hooks out again, and give the tensor to `report` before the denoiser reaches `place`.
    """

    name: str
    place: type[Place]
    read: Callable[[Any], Tensor | None] | None = None
    attach: Attach | None = None


def _modulated(at: FirstBlock) -> Tensor:
    if at.anatomy.modulated is None:
        raise DoesNotFit(f"no timestep-modulated input is known for {type(at.block).__name__}: add it to ANATOMY")
    return at.anatomy.modulated(at.block, at.arguments)


LATENT = Signal("latent", Call, lambda at: at.latent)
TIMESTEP = Signal("timestep", Call, lambda at: at.timestep)
OUTPUT = Signal("output", Call, lambda at: at.output)  # at the newest computed step; absent before
ENTERING = Signal("entering", FirstBlock, lambda at: at.arguments["hidden_states"])  # the embedded latent
MODULATED = Signal("modulated", FirstBlock, _modulated)  # normalised and modulated by the timestep
PROBE = Signal("probe", Front, lambda at: at.hidden)  # the embedded latent after the front blocks
