"""DeepCache's site: a skipped step of a U-Net runs only its shallow layers."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, StandIn
from spectrum_bench.errors import BadValue, DoesNotFit


@dataclass(frozen=True)
class Shallow(Site):
    """The deep layers' output, which the shallow ones read (DeepCache, arXiv:2312.00858; horseee/DeepCache). A skipped
    step runs the down layers before layer `layer` of block `block`, counted from the outside, and the up layers after
    it.

    Attributes:
        block, layer: with 0 and 0 only conv_in, the last up layer and conv_out run. DeepCache's cache_branch_id is
            3 block + layer.
    """

    block: int = 0
    layer: int = 0

    @property
    def runs_blocks(self) -> bool:
        return False

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        if not hasattr(denoiser, "up_blocks"):
            raise DoesNotFit(f"{type(denoiser).__name__} is no U-Net: use site=last_block or tail_residual")
        unet: Any = denoiser
        downs, ups = unet.down_blocks, list(unet.up_blocks)[::-1]
        if not (isinstance(self.block, int) and 0 <= self.block < len(ups)):
            raise BadValue(f"site.block must be a whole number from 0 to {len(ups) - 1}, not {self.block}")
        down, up = downs[self.block], ups[self.block]
        count = len(up.resnets)
        if not (isinstance(self.layer, int) and 0 <= self.layer < count):
            raise BadValue(f"site.layer must be a whole number from 0 to {count - 1}, not {self.layer}")
        deep: list[tuple[Any, str, int | None]]
        deep = [(down, name, i) for name in ("resnets", "attentions") for i in _indices(down, name) if i >= self.layer]
        deep += [(down, "downsamplers", i) for i in _indices(down, "downsamplers")]
        deep += [(denoiser, "down_blocks", i) for i in range(self.block + 1, len(downs))]
        deep += [(denoiser, "mid_block", None)] if denoiser.mid_block is not None else []
        deep += [(denoiser, "up_blocks", i) for i in range(len(ups) - 1 - self.block)]
        before = range(count - 1 - self.layer)  # the deep ones of this block's up layers
        deep += [(up, name, i) for i in before for name in ("resnets", "attentions") if i in _indices(up, name)]
        for owner, name, i in deep:  # in the order in which they run: the last one feeds the first shallow up layer
            stand_in = _Kept if (owner, name, i) == deep[-1] else _Nothing
            parts = getattr(owner, name)
            if i is None:
                undo.callback(setattr, owner, name, parts)
                setattr(owner, name, stand_in(parts, session))
            else:
                undo.callback(parts.__setitem__, i, parts[i])
                parts[i] = stand_in(parts[i], session)


def _indices(block: nn.Module, name: str) -> range:
    return range(len(getattr(block, name, None) or ()))


class _Kept(StandIn):
    """Stands in for the module whose output the shallow layers read."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        branch = self.session.branch
        if branch.computing:
            out = self.module(*args, **kwargs)
            branch.store("deep", out[0] if isinstance(out, tuple) else out)
            self.is_tuple = isinstance(out, tuple)
            return out
        feature = branch.forecast("deep")
        return (feature,) if self.is_tuple else feature


class _Nothing(StandIn):
    """Stands in for a deep module. At a skipped step it gives a zero in all places, which takes no memory: only such
    stand-ins read it, and a ControlNet's residuals are added to it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.session.computing:
            out = self.module(*args, **kwargs)
            self.like = _shapes(out)
            return out
        return _nothing(self.like, args[0] if args else kwargs["hidden_states"])


def _shapes(out: Any) -> Any:
    return out.shape[1:] if isinstance(out, Tensor) else tuple(_shapes(part) for part in out)


def _nothing(like: Any, reference: Tensor) -> Any:
    if isinstance(like, torch.Size):
        return reference.new_zeros(()).expand(len(reference), *like)
    return tuple(_nothing(part, reference) for part in like)
