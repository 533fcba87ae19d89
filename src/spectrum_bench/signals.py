"""Signals: the tensors that a gate observes, and the places in a step where they are known.

The denoiser passes three places in every step: its call, its first block, and the end of the blocks that a site runs at
every step. A signal is read from the tensors of one place, or reported by its own hooks. A gate decides at the last
place that one of its signals needs. Signals that no gate observes are neither read nor attached.

A new signal is one entry here and a name in a gate's `observes`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy, Argument, stacks
from spectrum_bench.errors import DoesNotFit


class Place:
    """A point that the denoiser passes once a step and guidance branch. Its attributes hold the tensors of that
    point."""

    order: ClassVar[int]


@dataclass(frozen=True)
class Call(Place):
    """The denoiser is about to run.

    Attributes:
        latent: the denoiser's input.
        timestep: the noise level, in the denoiser's own units.
        output: the denoiser's output at this branch's newest computed step; None before that, or if no gate observes
            it.
        noise: returns the latent's noise divided by its signal, by the pipeline's scheduler.
    """

    order: ClassVar[int] = 0
    latent: Tensor
    timestep: Tensor
    output: Tensor | None
    noise: Callable[[], Tensor | None]


@dataclass(frozen=True)
class FirstBlock(Place):
    """The first block is about to run.

    Attributes:
        block: the first block.
        arguments: its arguments by name. "hidden_states" holds the image or video tokens, whatever the block calls
            them.
        anatomy: the entry of this class of denoiser in ANATOMY.
    """

    order: ClassVar[int] = 1
    block: nn.Module
    arguments: dict[str, Any]
    anatomy: Anatomy


@dataclass(frozen=True)
class Front(Place):
    """The blocks that the site runs at every step have run.

    Attributes:
        hidden: their output, the image or video tokens (B, L, D).
    """

    order: ClassVar[int] = 2
    hidden: Tensor


Report = Callable[[Tensor], None]
Attach = Callable[[nn.Module, Anatomy, Report, ExitStack], None]


@dataclass(frozen=True, eq=False)
class Signal:
    """One tensor of the running model.

    Attributes:
        name: the name in messages.
        place: where in a step the signal is known: Call, FirstBlock or Front.
        read: returns the tensor from a place, or None if there is none yet.
        attach: for a tensor that no place holds. A function of (denoiser, anatomy, report, undo) that adds hooks to the
            denoiser and pushes their removal onto `undo`. The hooks give the tensor to `report` before the denoiser
            reaches `place`.
        late: the hooks report after the decision, at computed steps alone. The gate sees the newest tensor at the
            branch's next steps, and nothing at the first.
    """

    name: str
    place: type[Place]
    read: Callable[[Any], Tensor | None] | None = None
    attach: Attach | None = None
    late: bool = False


def _modulated(at: FirstBlock) -> Tensor:
    if at.anatomy.modulated is None:
        raise DoesNotFit(f"no timestep-modulated input is known for {type(at.block).__name__}: add it to ANATOMY")
    return at.anatomy.modulated(at.block, at.arguments)


def _tokens(at: FirstBlock) -> Tensor:
    modulate = at.anatomy.tokens or at.anatomy.modulated
    if modulate is None:
        raise DoesNotFit(f"no modulated tokens are known for {type(at.block).__name__}: add them to ANATOMY")
    return modulate(at.block, at.arguments)


class TokenGrid:
    """The grid of the image or video tokens, (height, width) or (frames, height, width), from the first call that the
    denoiser gets."""

    def __init__(self, denoiser: nn.Module):
        self.name = type(denoiser).__name__
        self.latent, self.places = Argument(denoiser, 0), Argument(denoiser, "img_ids")
        settings: Any = denoiser.config
        patch = getattr(settings, "patch_size", 1)
        self.patch = (
            patch if isinstance(patch, (tuple, list)) else (getattr(settings, "patch_size_t", 1) or 1, patch, patch)
        )
        self.grid: tuple[int, ...] = ()

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
        """The grid in a call with these positional and named arguments.

        Raises:
            DoesNotFit: the latent is packed, and no argument says where its tokens are.
        """
        if not self.grid:
            latent, places = self.latent.of(args, kwargs), self.places.of(args, kwargs)
            if isinstance(latent, Tensor) and latent.ndim > 3:
                sizes = latent.shape[2:]
                self.grid = tuple(n // p for n, p in zip(sizes, self.patch[-len(sizes) :], strict=True))
            elif places is not None:  # (..., L, axes), whole numbers from 0
                sizes = (places.flatten(0, -2).amax(0) + 1).int().tolist()
                self.grid = tuple(n for n in sizes if n > 1)
            else:
                raise DoesNotFit(f"nothing tells how the tokens of {self.name} lie: use an algo without frequencies")
        return self.grid


def _attach_grid(denoiser: nn.Module, anatomy: Anatomy, report: Report, undo: ExitStack) -> None:
    grid = TokenGrid(denoiser)

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        report(torch.tensor(grid.of(args, kwargs)))

    undo.callback(denoiser.register_forward_pre_hook(look, with_kwargs=True).remove)


def _attach_middle(denoiser: nn.Module, anatomy: Anatomy, report: Report, undo: ExitStack) -> None:
    blocks: Any = getattr(denoiser, stacks(denoiser)[0])
    middle = blocks[len(blocks) // 2] if isinstance(blocks, nn.ModuleList) else blocks
    known = anatomy.modules.get(type(middle).__name__)
    if known is None:
        raise DoesNotFit(f"no attention is known in {type(middle).__name__}: use an algo that does not observe it")

    def tell(module: nn.Module, args: Any, output: Any) -> None:
        report(output if isinstance(output, Tensor) else output[0])  # a joint attention's image tokens come first

    undo.callback(getattr(middle, known.attentions[0]).register_forward_hook(tell).remove)


LATENT = Signal("latent", Call, lambda at: at.latent)
TIMESTEP = Signal("timestep", Call, lambda at: at.timestep)
NOISE = Signal("noise", Call, lambda at: at.noise())  # () sigma / alpha of the latent
GRID = Signal("grid", FirstBlock, attach=_attach_grid)  # of the tokens: (height, width) or (frames, height, width)
OUTPUT = Signal("output", Call, lambda at: at.output)  # at the newest computed step; missing before that
ENTERING = Signal("entering", FirstBlock, lambda at: at.anatomy.entering(at.arguments))  # the embedded latent
MODULATED = Signal("modulated", FirstBlock, _modulated)  # normalised and modulated by the timestep
TOKENS = Signal("tokens", FirstBlock, _tokens)  # (B, L, D), as the first block's attention gets them
MIDDLE = Signal("middle", Call, attach=_attach_middle, late=True)  # the attention's output, (B, L, D)
PROBE = Signal("probe", Front, lambda at: at.hidden)  # the embedded latent after the front blocks
