"""Modules whose output only the blocks read (rotary tables, the text's projection, the embedded latent) do not run at a
step that bypasses the blocks."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Size, Tensor, nn

from spectrum_bench.anatomy import Anatomy, Argument
from spectrum_bench.caching.branch import Branch
from spectrum_bench.caching.history import tensors
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import StandIn, replace


class _Tensors:
    """Tensors, and the number of times that each had been written to."""

    def __init__(self, node: object):
        self.tensors = list(tensors(node))
        self.versions = [tensor._version for tensor in self.tensors if not tensor.is_inference()]  # type: ignore[attr-defined, unused-ignore]

    def are(self, other: "_Tensors") -> bool:
        """Whether the others are the same objects, and nobody has written to them."""
        tracked = len(self.versions) == len(self.tensors) == len(other.tensors)
        same = all(a is b for a, b in zip(self.tensors, other.tensors, strict=False))
        return tracked and same and self.versions == other.versions


@dataclass
class _Newest:
    """A module's newest output in one guidance branch, for gates that decide after the module has run."""

    output: Any = None
    versions: _Tensors | None = None  # the tensors of the output
    arguments: _Tensors | None = None  # the arguments of the denoiser's call
    shape: Size | None = None  # of the module's input


class _Unread(StandIn):
    """Stands in for a module whose output only the blocks read.

    At a step that is known to be skipped the module does not run. The stand-in returns NaN in the dtypes and shapes of
    the module's outputs, which takes no memory and would show up in the latents if anything read it. At a step that is
    not decided yet it returns the newest output, if the module would compute it again from the same tensors.
    """

    def __init__(self, module: nn.Module, session: Session, name: str, sources: list[Argument] | None, call: list[Any]):
        super().__init__(module, session)
        self.name, self.sources, self.call = name, sources, call
        self.outlines: dict[tuple[Branch, Size], Any] = {}  # by the shape of the module's input

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        shape = (args[0] if args else next(iter(kwargs.values()))).shape
        key = self.session.branch, shape
        if self.session.skipping and key in self.outlines:
            return self.outlines[key]
        if self.session.undecided and self.sources is not None:
            out = self._again(shape, _Tensors([source.of(*self.call) for source in self.sources]), args, kwargs)
        else:
            out = self.module(*args, **kwargs)
        if key not in self.outlines:
            self.outlines[key] = _outline(out)
        return out

    def _again(self, shape: Size, arguments: _Tensors, args: Any, kwargs: Any) -> Any:
        newest = self.session.branch.own(_Newest, self.name)
        known = newest.arguments is not None and newest.versions is not None and newest.shape == shape
        if known and newest.arguments.are(arguments) and newest.versions.are(_Tensors(newest.output)):  # type: ignore[union-attr]
            return newest.output
        newest.output, newest.arguments, newest.shape = self.module(*args, **kwargs), arguments, shape
        newest.versions = _Tensors(newest.output)
        return newest.output


def _outline(out: Any) -> Any:
    """For each tensor one NaN, or one 0 for integers, expanded to its shape."""
    if isinstance(out, Tensor):
        return out.new_full((), math.nan if out.is_floating_point() else 0).expand(out.shape)
    return tuple(_outline(part) for part in out)


def leave_out_unread(
    denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack, reads_embedded: bool
) -> None:
    """Put stand-ins in place of the modules whose output, by ANATOMY, only the blocks read.

    Args:
        reads_embedded: whether a skipped step needs the embedded latent.
    """
    call: list[Any] = []  # the positional and named arguments of the denoiser's call

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        call[:] = [args, kwargs]

    if anatomy.unread:
        undo.callback(denoiser.register_forward_pre_hook(look, with_kwargs=True).remove)
    unread: dict[str, list[Argument] | None] = {
        name: [Argument(denoiser, source) for source in sources] for name, sources in anatomy.unread.items()
    }
    if anatomy.embedder is not None and not reads_embedded:
        unread[anatomy.embedder] = None
    for name, arguments in unread.items():
        stand_in = partial(_Unread, session=session, name=name, sources=arguments, call=call)
        replace(denoiser, name, stand_in, undo)
