"""Where things are in a denoiser. The only file that reads diffusers' block registry (not yet public API)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockModules:
    """The modules of one class of block that per-module caching stands in for.

    Attributes:
        cached: their outputs are what is added to the stream once gated; these are kept and forecast.
        idle: only feed a cached module, so that a skipped step need not run them.
        attentions: for token-wise caching; the first one's scores count.
        mlps: those with a stream of tokens of their own, at the "head" or the "tail" of the joint attention's.
        fused: first and last layer of an MLP that is closed together with the attention.
    """

    cached: tuple[str, ...]
    idle: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ("attn",)
    mlps: dict[str, str] | None = None
    fused: tuple[str, str] | None = None


@dataclass(frozen=True)
class Anatomy:
    """What differs from the default, by class of denoiser.

    Attributes:
        stacks: names of what a skipped step bypasses, in the order in which it runs, if that is not just every list
            of blocks that diffusers has registered.
        answer: hidden states -> what the first block returns, where diffusers' registry does not tell.
        image: (last block's output, first block's input) -> its image tokens, where text shares their stream.
        modulated: (first block, its arguments by name) -> the timestep-modulated input, TeaCache's signal.
        modules: per class of block, for per-module caching.
    """

    stacks: tuple[str, ...] | None = None
    answer: Callable[[Tensor], object] | None = None
    image: Callable[[Tensor, Tensor], Tensor] = lambda leaving, entering: leaving
    modulated: Callable[[nn.Module, dict], Tensor] | None = None
    modules: dict[str, BlockModules] = field(default_factory=dict)


def _first_norm(block: nn.Module, given: dict) -> Tensor:
    """(B, L, D) normalised and modulated by the timestep."""
    return block.norm1(given["hidden_states"], emb=given["temb"])[0]


def _time_embedding(block: nn.Module, given: dict) -> Tensor:
    return given["temb"]


TEXT_THEN_IMAGE = BlockModules(cached=("attn", "ff", "ff_context"), mlps={"ff": "tail", "ff_context": "head"})
IMAGE_THEN_TEXT = BlockModules(cached=("attn", "ff", "ff_context"), mlps={"ff": "head", "ff_context": "tail"})
# one linear layer closes attention and MLP together: its output is "total" in TaylorSeer's code
SINGLE = BlockModules(cached=("proj_out",), idle=("attn", "proj_mlp"), mlps={}, fused=("proj_mlp", "proj_out"))

ANATOMY = {
    "FluxTransformer2DModel": Anatomy(
        modulated=_first_norm, modules={"FluxTransformerBlock": TEXT_THEN_IMAGE, "FluxSingleTransformerBlock": SINGLE}
    ),
    "SD3Transformer2DModel": Anatomy(  # TeaCache's authors have none: our reading, as for FLUX
        modulated=_first_norm,
        modules={
            "JointTransformerBlock": BlockModules(
                cached=("attn", "attn2", "ff", "ff_context"),
                attentions=("attn", "attn2"),
                mlps={"ff": "head", "ff_context": "tail"},
            )
        },
    ),
    "HunyuanVideoTransformer3DModel": Anatomy(
        modulated=_first_norm,
        modules={"HunyuanVideoTransformerBlock": IMAGE_THEN_TEXT, "HunyuanVideoSingleTransformerBlock": SINGLE},
    ),
    "WanTransformer3DModel": Anatomy(  # ali-vilab/TeaCache@7c10efc, TeaCache4Wan2.1 with use_ret_steps
        modulated=_time_embedding,
        modules={
            "WanTransformerBlock": BlockModules(
                cached=("attn1", "attn2", "ffn"), attentions=("attn1", "attn2"), mlps={"ffn": "head"}
            )
        },
    ),
    "UNet2DConditionModel": Anatomy(  # skip connections do not leave the bypassed part; TeaCache is our reading
        stacks=("down_blocks", "mid_block", "up_blocks"),
        answer=lambda hidden: (hidden, ()),
        modulated=_time_embedding,
    ),
    "Flux2Transformer2DModel": Anatomy(image=lambda leaving, entering: leaving[:, -entering.shape[1] :]),
    "ZImageTransformer2DModel": Anatomy(stacks=("layers",)),  # refiners have the same block; the epilogue gets text too
    "BriaTransformer2DModel": Anatomy(stacks=("transformer_blocks", "single_transformer_blocks")),
}

TEXT_FIRST = TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0)
CORRECTED = {  # blocks that diffusers' registry describes wrongly, or leaves out
    "BriaTransformerBlock": TEXT_FIRST,
    "BriaSingleTransformerBlock": TEXT_FIRST,
    "ZImageTransformerBlock": TransformerBlockMetadata(return_hidden_states_index=0, hidden_states_argument_name="x"),
}


def anatomy(denoiser: nn.Module) -> Anatomy:
    return ANATOMY.get(type(denoiser).__name__, Anatomy())


def block_io(block: nn.Module):
    """Where a block's streams are among its arguments and outputs (diffusers' TransformerBlockMetadata)."""
    if type(block).__name__ in CORRECTED:
        return CORRECTED[type(block).__name__]
    TransformerBlockRegistry._register()
    return TransformerBlockRegistry._registry.get(type(block), TransformerBlockMetadata(return_hidden_states_index=0))


def stacks(denoiser: nn.Module) -> list[str]:
    """Names of what a skipped step bypasses: lists of blocks, and single ones, in the order in which they run.

    Raises:
        ValueError: ANATOMY names none, and no module list holds blocks that diffusers has registered.
    """
    if anatomy(denoiser).stacks is not None:
        return [name for name in anatomy(denoiser).stacks if getattr(denoiser, name) is not None]  # no mid block
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
