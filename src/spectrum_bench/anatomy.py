"""The structure of denoisers. This is the only file that reads diffusers' block registry, which is not yet public."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import Tensor, nn

from spectrum_bench.errors import DoesNotFit


@dataclass(frozen=True)
class BlockModules:
    """The modules of one class of block that per-module caching replaces.

    Attributes:
        cached: modules whose outputs are gated and added to the stream. These outputs are cached and forecast.
        idle: modules whose output only cached modules read -> these. A step that forecasts them need not run it. The
            norms are among them; the layers that make the gates are not, because gates multiply forecasts too.
        left: how many tokens an idle module gives where it does not run. It is 1 where the modulation may differ from
            token to token (Wan2.2 5B), because 0 tokens do not broadcast over many.
        attentions: the attention modules, for token-wise caching, which takes its scores from the first.
        mlps: MLPs with their own stream of tokens -> the place of these tokens in the joint attention, "head" or
            "tail".
        fused: the first and the last layer of an MLP whose last layer also closes the attention.
    """

    cached: tuple[str, ...]
    idle: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left: int = 0
    attentions: tuple[str, ...] = ("attn",)
    mlps: dict[str, str] | None = None
    fused: tuple[str, str] | None = None


@dataclass(frozen=True)
class Anatomy:
    """How a class of denoiser differs from the default.

    Attributes:
        stacks: the names of the parts that a skipped step bypasses, in the order in which they run. None: every list
            of blocks that diffusers has registered.
        answer: hidden states -> the return value of the first block, if diffusers' registry does not describe it.
        entering: the arguments of a block -> its image tokens, if a condition's share their stream at some steps.
        image: (last block's output, first block's image tokens) -> the image tokens, if others share their stream.
        second: whether what diffusers calls the stream of text is the sample's too (a sound's), and forecast like it.
        modulated: (first block, its arguments by name) -> the timestep-modulated input, TeaCache's signal.
        tokens: the same, (B, L, D), as the first block's attention gets it, where TeaCache's signal is another.
        modules: the modules of each class of block, for per-module caching.
        unread: modules of the denoiser whose output the blocks alone read, neither the epilogue nor the time embedding;
            with the names of the denoiser's arguments on which it depends, besides the shape of what the module gets.
        embedder: name of the module that embeds the latent; besides the blocks only its shape and dtype are read.
    """

    stacks: tuple[str, ...] | None = None
    answer: Callable[[Tensor], object] | None = None
    entering: Callable[[dict[str, Any]], Tensor] = lambda given: given["hidden_states"]
    image: Callable[[Tensor, Tensor], Tensor] = lambda leaving, entering: leaving
    second: bool = False
    modulated: Callable[[nn.Module, dict[str, Any]], Tensor] | None = None
    tokens: Callable[[nn.Module, dict[str, Any]], Tensor] | None = None
    modules: dict[str, BlockModules] = field(default_factory=dict)
    unread: dict[str, tuple[str, ...]] = field(default_factory=dict)
    embedder: str | None = None


def _first_norm(block: nn.Module, given: dict[str, Any]) -> Tensor:
    """(B, L, D) normalised and modulated by the timestep."""
    norm: Any = block.norm1
    modulated: Tensor = norm(given["hidden_states"], emb=given["temb"])[0]
    return modulated


def _time_embedding(block: nn.Module, given: dict[str, Any]) -> Tensor:
    embedding: Tensor = given["temb"]
    return embedding


def _modulated_by_table(block: nn.Module, given: dict[str, Any]) -> Tensor:
    """(B, L, D) normalised and modulated; the block adds a table of its own to the time embedding (B, 6, D), or
    (B, L, 6, D) where each token has its own time."""
    own: Any = block
    shift, scale = (own.scale_shift_table + given["temb"].float()).unbind(-2)[:2]
    if given["temb"].ndim == 3:
        shift, scale = shift[:, None], scale[:, None]
    tokens: Tensor = own.norm1(given["hidden_states"].float()) * (1 + scale) + shift
    return tokens.type_as(given["hidden_states"])


def _pixels(block: nn.Module, given: dict[str, Any]) -> Tensor:
    """(B, H W, D) of a U-Net's (B, D, H, W)."""
    pixels: Tensor = given["hidden_states"]
    return pixels.flatten(2).transpose(1, 2)


def _behind_text(leaving: Tensor, entering: Tensor) -> Tensor:
    """The image tokens of a stream that begins with text."""
    return leaving[:, -entering.shape[1] :]


def _target(given: dict[str, Any]) -> Tensor:
    """The sample's own tokens, which follow the condition's unless those were computed before and are kept."""
    tokens: Tensor = given["hidden_states"]
    return tokens if given["kv_cache_mode"] == "cached" else tokens[:, -int(given["target_token_mask"].sum()) :]


ATTENTIONS = ("attn", "attn2")
JOINT_NORMS = {
    "norm1.norm": ATTENTIONS,
    "norm1_context.norm": ATTENTIONS,
    "norm2": ("ff",),
    "norm2_context": ("ff_context",),
}
JOINT = BlockModules(cached=("attn", "ff", "ff_context"), idle=JOINT_NORMS)
TEXT_THEN_IMAGE = replace(JOINT, mlps={"ff": "tail", "ff_context": "head"})
IMAGE_THEN_TEXT = replace(JOINT, mlps={"ff": "head", "ff_context": "tail"})
# one linear layer closes attention and MLP together: its output is "total" in TaylorSeer's code
SINGLE = BlockModules(
    cached=("proj_out",),
    idle=dict.fromkeys(("norm.norm", "attn", "proj_mlp"), ("proj_out",)),
    mlps={},
    fused=("proj_mlp", "proj_out"),
)

ANATOMY = {
    "FluxTransformer2DModel": Anatomy(
        modulated=_first_norm,
        modules={"FluxTransformerBlock": TEXT_THEN_IMAGE, "FluxSingleTransformerBlock": SINGLE},
        unread={"pos_embed": ("txt_ids", "img_ids"), "context_embedder": ("encoder_hidden_states",)},
        embedder="x_embedder",
    ),
    "SD3Transformer2DModel": Anatomy(  # TeaCache's authors have none: our reading, as for FLUX
        modulated=_first_norm,
        modules={
            "JointTransformerBlock": BlockModules(
                cached=(*ATTENTIONS, "ff", "ff_context"),
                idle=JOINT_NORMS,
                attentions=ATTENTIONS,
                mlps={"ff": "head", "ff_context": "tail"},
            )
        },
        unread={"context_embedder": ("encoder_hidden_states",)},
        embedder="pos_embed",
    ),
    "HunyuanVideoTransformer3DModel": Anatomy(
        modulated=_first_norm,
        modules={"HunyuanVideoTransformerBlock": IMAGE_THEN_TEXT, "HunyuanVideoSingleTransformerBlock": SINGLE},
        unread={"rope": (), "context_embedder": ("encoder_hidden_states", "timestep", "encoder_attention_mask")},
        embedder="x_embedder",
    ),
    "WanTransformer3DModel": Anatomy(  # ali-vilab/TeaCache@7c10efc, TeaCache4Wan2.1 with use_ret_steps
        modulated=_time_embedding,
        tokens=_modulated_by_table,
        modules={
            "WanTransformerBlock": BlockModules(
                cached=("attn1", "attn2", "ffn"),
                idle={"norm1": ("attn1",), "norm2": ("attn2",), "norm3": ("ffn",)},
                left=1,
                attentions=("attn1", "attn2"),
                mlps={"ffn": "head"},
            )
        },
        unread={"rope": (), "condition_embedder.text_embedder": ("encoder_hidden_states",)},
        embedder="patch_embedding",
    ),
    "UNet2DConditionModel": Anatomy(  # skip connections do not leave the bypassed part; TeaCache is our reading
        stacks=("down_blocks", "mid_block", "up_blocks"),
        answer=lambda hidden: (hidden, ()),
        modulated=_time_embedding,
        tokens=_pixels,
    ),
    "Flux2Transformer2DModel": Anatomy(image=_behind_text),
    "QwenImage21Transformer2DModel": Anatomy(stacks=("transformer_blocks",), entering=_target, image=_behind_text),
    "LTX2VideoTransformer3DModel": Anatomy(stacks=("transformer_blocks",), second=True),
    "ChromaTransformer2DModel": Anatomy(  # diffusers has registered none of its blocks
        stacks=("transformer_blocks", "single_transformer_blocks"),
        image=_behind_text,
        unread={"pos_embed": ("txt_ids", "img_ids"), "context_embedder": ("encoder_hidden_states",)},
        embedder="x_embedder",
    ),
    "AuraFlowTransformer2DModel": Anatomy(  # nor of these
        stacks=("joint_transformer_blocks", "single_transformer_blocks"),
        image=_behind_text,
        unread={"context_embedder": ("encoder_hidden_states",)},
        embedder="pos_embed",
    ),
    "ZImageTransformer2DModel": Anatomy(stacks=("layers",)),  # refiners have the same block; the epilogue gets text too
    "HunyuanVideo15Transformer3DModel": Anatomy(stacks=("transformer_blocks",)),  # nor of these
    "BriaTransformer2DModel": Anatomy(stacks=("transformer_blocks", "single_transformer_blocks")),
}

TEXT_FIRST = TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0)
CORRECTED = {  # blocks that diffusers' registry describes wrongly, or leaves out
    "BriaTransformerBlock": TEXT_FIRST,
    "BriaSingleTransformerBlock": TEXT_FIRST,
    "ChromaTransformerBlock": TEXT_FIRST,
    "AuraFlowJointTransformerBlock": TEXT_FIRST,
    "HunyuanVideo15TransformerBlock": TransformerBlockMetadata(
        return_hidden_states_index=0, return_encoder_hidden_states_index=1
    ),
    "LTX2VideoTransformerBlock": TransformerBlockMetadata(
        return_hidden_states_index=0,
        return_encoder_hidden_states_index=1,
        encoder_hidden_states_argument_name="audio_hidden_states",
    ),
    "ZImageTransformerBlock": TransformerBlockMetadata(return_hidden_states_index=0, hidden_states_argument_name="x"),
}


def anatomy(denoiser: nn.Module) -> Anatomy:
    """The entry of this class of denoiser in ANATOMY, or the default."""
    return ANATOMY.get(type(denoiser).__name__, Anatomy())


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's arguments, in order. Too slow for a step: call it when hooks are attached."""
    kind: Any = type(module)
    return _parameter_names(kind)


@cache
def _parameter_names(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


class Argument:
    """One argument of a module's call, looked up once when hooks are attached.

    Args:
        which: its place (0: a denoiser's latent) or its name. If a call lacks it, `of` returns None.
    """

    def __init__(self, module: nn.Module, which: int | str):
        names = parameter_names(module)
        self.name = names[which] if isinstance(which, int) else which
        self.place = names.index(self.name) if self.name in names else len(names)

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of the argument in a call with these positional and named arguments."""
        return args[self.place] if self.place < len(args) else kwargs.get(self.name)


def stacked(latent: Any) -> Any:
    """A denoiser's latent or output, (B, ...); some take and give a list with one tensor for each sample."""
    return torch.stack(latent) if isinstance(latent, list) and len({x.shape for x in latent}) == 1 else latent


class BlockIO:
    """Where a block's streams are among its arguments and outputs, looked up once when hooks are attached."""

    def __init__(self, block: nn.Module):
        self.names, self.where = parameter_names(block), _metadata(block)
        self.second = str(self.where.encoder_hidden_states_argument_name)  # the argument with the other stream

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The block's arguments by name, its image or video tokens as "hidden_states"."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        given["hidden_states"] = given[self.where.hidden_states_argument_name]
        return given

    def hidden(self, output: Any) -> Tensor:
        """The image or video tokens in the block's output."""
        return output if isinstance(output, Tensor) else output[self.where.return_hidden_states_index]

    def text(self, output: Any) -> Tensor | None:
        """The text tokens in the block's output, if it returns them separately."""
        index = self.where.return_encoder_hidden_states_index
        tokens: Tensor | None = None if index is None else output[index]
        return tokens

    def outputs(self, hidden: Tensor, arguments: dict[str, Any]) -> Any:
        """A return value of the block with `hidden` as its image tokens; the text stream passes through."""
        if self.where.return_encoder_hidden_states_index is None:
            return hidden
        out = {self.where.return_hidden_states_index: hidden}
        out[self.where.return_encoder_hidden_states_index] = arguments[self.where.encoder_hidden_states_argument_name]
        return tuple(out[i] for i in sorted(out))


def _metadata(block: nn.Module) -> TransformerBlockMetadata:
    default = CORRECTED.get(type(block).__name__, TransformerBlockMetadata(return_hidden_states_index=0))
    return default if type(block).__name__ in CORRECTED else _registered().get(type(block), default)


def _registered() -> dict[type, TransformerBlockMetadata]:
    """diffusers' own list of classes of blocks."""
    TransformerBlockRegistry._register()
    registry: dict[type, TransformerBlockMetadata] = TransformerBlockRegistry._registry
    return registry


def stacks(denoiser: nn.Module) -> list[str]:
    """The names of the parts that a skipped step bypasses, lists of blocks or single blocks, in the order in which they
    run.

    Raises:
        DoesNotFit: ANATOMY names no parts, and no module list holds blocks that diffusers has registered.
    """
    declared = anatomy(denoiser).stacks
    if declared is not None:
        return [name for name in declared if getattr(denoiser, name) is not None]  # some U-Nets have no mid block
    known = tuple(_registered())
    names = [
        name
        for name, child in denoiser.named_children()
        if isinstance(child, nn.ModuleList) and len(child) and isinstance(child[0], known)
    ]
    if not names:
        kind = type(denoiser).__name__
        raise DoesNotFit(
            f"{kind} has no list of transformer blocks that diffusers knows of: add it to ANATOMY in "
            'src/spectrum_bench/anatomy.py, "' + kind + '": Anatomy(stacks=(<its lists of blocks, in their order>,))'
        )
    return names


def all_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """All blocks in the order in which they run."""
    parts = [getattr(denoiser, name) for name in stacks(denoiser)]
    return [block for part in parts for block in (part if isinstance(part, nn.ModuleList) else [part])]
