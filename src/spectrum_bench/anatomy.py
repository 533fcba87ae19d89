"""Where things are in a denoiser. The only file that reads diffusers' block registry (not yet public API)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from diffusers.hooks._helpers import TransformerBlockRegistry
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockModules:
    """The modules of one class of block that per-module caching stands in for.

    Attributes:
        cached: their outputs are what is added to the stream once gated; these are kept and forecast.
        idle: only feed a cached module, so that a skipped step need not run them.
    """

    cached: tuple[str, ...]
    idle: tuple[str, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """What differs from the default, by class of denoiser.

    Attributes:
        modulated: (first block, its arguments by name) -> the timestep-modulated input, TeaCache's signal.
        modules: per class of block, for per-module caching.
    """

    modulated: Callable[[nn.Module, dict], Tensor] | None = None
    modules: dict[str, BlockModules] = field(default_factory=dict)


ANATOMY = {
    "FluxTransformer2DModel": Anatomy(
        modulated=lambda block, given: block.norm1(given["hidden_states"], emb=given["temb"])[0],
        modules={
            "FluxTransformerBlock": BlockModules(cached=("attn", "ff", "ff_context")),
            # one linear layer closes attention and MLP together: its output is "total" in TaylorSeer's code
            "FluxSingleTransformerBlock": BlockModules(cached=("proj_out",), idle=("attn", "proj_mlp")),
        },
    ),
}


def anatomy(denoiser: nn.Module) -> Anatomy:
    return ANATOMY.get(type(denoiser).__name__, Anatomy())


def block_io(block: nn.Module):
    """Where a block's streams are among its arguments and outputs (diffusers' TransformerBlockMetadata)."""
    return TransformerBlockRegistry.get(type(block))


def stacks(denoiser: nn.Module) -> list[str]:
    """Names of the denoiser's lists of blocks, in the order in which they run.

    Raises:
        ValueError: none of its module lists holds blocks that diffusers has registered.
    """
    TransformerBlockRegistry._register()
    known = tuple(TransformerBlockRegistry._registry)
    found = [
        name
        for name, child in denoiser.named_children()
        if isinstance(child, nn.ModuleList) and len(child) and isinstance(child[0], known)
    ]
    if not found:
        raise ValueError(f"{type(denoiser).__name__} has no list of transformer blocks that diffusers knows of")
    return found
