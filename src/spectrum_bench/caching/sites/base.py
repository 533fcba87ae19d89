"""What sites share: stand-ins for modules, and where a block's streams are among its arguments and outputs."""

import inspect
from contextlib import ExitStack
from typing import Protocol

from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy, block_io, stacks


class Site(Protocol):
    runs_blocks: bool  # at least as far as to the first block's input, at every step

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session, undo: ExitStack) -> None:
        """Put the stand-ins in place and push onto `undo` what takes them out again."""


class StandIn(nn.Module):
    """Takes a module's place in its parent; what the parent reads of it is still the module's own."""

    def __init__(self, module: nn.Module, session):
        super().__init__()
        self.module, self.session = module, session

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def argument(denoiser: nn.Module, which: int | str, args: tuple, kwargs: dict):
    """An argument of a denoiser's call by its place (0: the latent) or its name; None where there is none."""
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    place = names.index(which) if which in names else which
    if isinstance(place, int) and place < len(args):
        return args[place]
    return kwargs.get(names[place] if isinstance(place, int) else place)


def all_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """All blocks in the order in which they run."""
    parts = [getattr(denoiser, name) for name in stacks(denoiser)]
    return [block for part in parts for block in (part if isinstance(part, nn.ModuleList) else [part])]


def by_name(block: nn.Module, args: tuple, kwargs: dict) -> dict:
    """A block's arguments by name, its image or video tokens as "hidden_states"."""
    io = block_io(block)
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    given = dict(zip(names, args, strict=False)) | kwargs
    return given | {"hidden_states": given[io.hidden_states_argument_name]}


def hidden_of(block: nn.Module, output) -> Tensor:
    """Of a block's output the image or video tokens."""
    return output if isinstance(output, Tensor) else output[block_io(block).return_hidden_states_index]


def outputs_of(block: nn.Module, hidden: Tensor, given: dict):
    """`hidden` in the place where the block's own output has it; the text stream passes through."""
    io = block_io(block)
    if io.return_encoder_hidden_states_index is None:
        return hidden
    out = {io.return_hidden_states_index: hidden}
    out[io.return_encoder_hidden_states_index] = given[io.encoder_hidden_states_argument_name]
    return tuple(out[i] for i in sorted(out))


def observe_first_block(block: nn.Module, anatomy: Anatomy, session, undo: ExitStack) -> None:
    """For sites that run every block: what gates observe at the first one."""

    def look(block, args, kwargs):
        observe(session, anatomy, block, by_name(block, args, kwargs))

    undo.callback(block.register_forward_pre_hook(look, with_kwargs=True).remove)


def observe(session, anatomy: Anatomy, block: nn.Module, given: dict) -> None:
    """What gates may want of the first block's arguments."""
    session.arrive(
        "blocks", entering=lambda: given["hidden_states"], modulated=lambda: _modulated(block, anatomy, given)
    )


def _modulated(block: nn.Module, anatomy: Anatomy, given: dict) -> Tensor:
    if anatomy.modulated is None:
        raise ValueError(f"no timestep-modulated input is known for {type(block).__name__}: add it to ANATOMY")
    return anatomy.modulated(block, given)
