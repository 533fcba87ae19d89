"""At a skipped step each linear layer adds to its cached output what a low-rank weight makes of its input's change."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from spectrum_bench import checks
from spectrum_bench.anatomy import Anatomy, BlockModules, all_blocks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, StandIn, observe_first_block, replace
from spectrum_bench.caching.sites.modules import known, present
from spectrum_bench.errors import DoesNotFit

Factors = tuple[Tensor, Tensor]  # (out, rank) and (rank, in)


@dataclass(frozen=True)
class Increments(Site):
    """ICC (arXiv:2505.05829, section 3.2; ccccczzy/icc@dafee02, DiT/models/models_sp_step_decomp.py `forward_inc`): the
    linear layers of attention and MLPs give y + A B (x' - x) for x', with x and y of the newest computed step, or as
    the forecaster has them. A B is the best approximation of the layer's weight of a low rank. Attention itself, norms,
    modulations and activations run at every step.

    The weights of channels by which the authors scale the decomposition are left out, as in their code's default.

    Attributes:
        share: the rank, as a share of the shorter side of the weight.
    """

    share: float = 1 / 9
    factors: WeakKeyDictionary[nn.Module, Factors] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        checks.number("site.share", self.share, 0, 1)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        blocks = all_blocks(denoiser)
        observe_first_block(blocks[0], anatomy, session, undo)
        for i, block in enumerate(blocks):
            for name in linear_layers(block, known(block, anatomy)):
                layer = block.get_submodule(name)
                if layer not in self.factors:
                    self.factors[layer] = low_rank(layer, self.share)
                kind = partial(_Incremented, session=session, slot=f"{i}.{name}", factors=self.factors[layer])
                replace(block, name, kind, undo)


def linear_layers(block: nn.Module, modules: BlockModules) -> list[str]:
    """The paths of the linear layers in what a block caches and in what only this reads."""
    parts = {name: block.get_submodule(name) for name in present(block, (*modules.cached, *modules.idle))}
    return [
        f"{name}.{inner}".rstrip(".")
        for name, part in parts.items()
        for inner, layer in part.named_modules()
        if isinstance(layer, nn.Linear)
    ]


@torch.no_grad()
def low_rank(layer: Any, share: float) -> Factors:
    """A and B, so that A B is the nearest matrix of this rank to the layer's (out, in) weight, in its dtype.

    Raises:
        DoesNotFit: the weight is elsewhere while the layer does not run, or is no matrix of floating-point numbers.
    """
    weight: Tensor = layer.weight
    if not weight.is_floating_point() or weight.is_meta and hasattr(layer, "_hf_hook"):
        raise DoesNotFit("site=increments decomposes weights: load them unquantised, with model.offload=none or model")
    rank = max(1, round(share * min(weight.shape)))
    if weight.is_meta:  # operations are counted
        return weight.new_empty(len(weight), rank), weight.new_empty(rank, weight.shape[1])
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    return (u[:, :rank] * s[:rank]).to(weight.dtype), vh[:rank].to(weight.dtype)


@dataclass
class _Newest:
    """The input that was stored last: queries, keys and values have the same one, which is stored once."""

    slot: str = ""
    of: Any = None  # a weak reference


class _Incremented(StandIn):
    """Stands in for a linear layer."""

    def __init__(self, layer: nn.Module, session: Session, slot: str, factors: Factors):
        super().__init__(layer, session)
        self.slot, self.source, self.factors = slot, slot, factors

    def forward(self, hidden: Tensor) -> Tensor:
        branch = self.session.branch
        if branch.computing:
            newest = branch.own(_Newest)
            if newest.of is None or newest.of() is not hidden:
                newest.slot, newest.of = f"{self.slot}.in", ref(hidden)
                branch.store(newest.slot, hidden)
            self.source = newest.slot
            out: Tensor = self.module(hidden)
            branch.store(f"{self.slot}.out", out)
            return out
        a, b = (factor.to(hidden) for factor in self.factors)
        change = hidden - branch.forecast(self.source)
        return branch.forecast(f"{self.slot}.out") + nn.functional.linear(nn.functional.linear(change, b), a)
