"""What a bypassed step would only compute for blocks that do not run: rotary tables, the text's projection, the
embedded latent."""

import math
from contextlib import ExitStack
from typing import Any

from torch import Size, Tensor, nn

from spectrum_bench.anatomy import Anatomy
from spectrum_bench.caching.session import Branch, Session
from spectrum_bench.caching.sites.base import StandIn


class _Unread(StandIn):
    """Stands in for a module whose output the blocks alone read. On a step that is known to be skipped the module does
    not run: the answer has the dtypes and shapes of its outputs, takes no memory, and is NaN, which would show up in
    the latents if anything did read it."""

    def __init__(self, module: nn.Module, session: Session):
        super().__init__(module, session)
        self.outlines: dict[tuple[Branch, Size], Any] = {}  # by the shape of what the module is given

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else next(iter(kwargs.values()))
        key = self.session.branch, given.shape
        if self.session.skipping and key in self.outlines:
            return self.outlines[key]
        out = self.module(*args, **kwargs)
        if key not in self.outlines:
            self.outlines[key] = _outline(out)
        return out


def _outline(out: Any) -> Any:
    """One NaN (of whole numbers one 0) a tensor, expanded to its shape."""
    if isinstance(out, Tensor):
        return out.new_full((), math.nan if out.is_floating_point() else 0).expand(out.shape)
    return tuple(_outline(part) for part in out)


def leave_out_unread(
    denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack, reads_embedded: bool
) -> None:
    """Put stand-ins in place of what ANATOMY says that the blocks alone read.

    Args:
        reads_embedded: whether a skipped step needs the embedded latent.
    """
    names = anatomy.unread if reads_embedded or anatomy.embedder is None else (*anatomy.unread, anatomy.embedder)
    for name in names:
        path, _, last = name.rpartition(".")
        parent = denoiser.get_submodule(path)
        module = getattr(parent, last)
        undo.callback(setattr, parent, last, module)
        setattr(parent, last, _Unread(module, session))
