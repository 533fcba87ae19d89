"""The untrained pieces of a miniature pipeline: tokenizers made from the world's words, and small models."""

from collections import Counter

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTokenizer, LlamaTokenizer, T5Tokenizer

from spectrum_bench.caching.session import denoisers
from spectrum_bench.miniature import world
from spectrum_bench.paths import ROOT

WORDS = sorted(
    {"a", "on", "background"}
    | {*world.SIZES, *world.COLOURS, *world.SHAPES, *world.BACKGROUNDS}
    | {word for relation in world.RELATIONS for word in relation.split()}
)
MOVING_WORDS = sorted({"moving", *world.MOTIONS} - set(WORDS))  # words of clips' captions alone


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers: each word of the world is one token


def _merges(words: list[list[str]]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one piece. `words` holds each word's characters. The most frequent pair is
    merged first; of equally frequent pairs, the first in the alphabet. (The trainer of `tokenizers` breaks ties at
    random.)"""
    words, merges = [list(w) for w in words], []
    while any(len(w) > 1 for w in words):
        pairs = Counter(pair for w in words for pair in zip(w, w[1:], strict=False))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for w in words:
            for i in range(len(w) - 2, -1, -1):
                if tuple(w[i : i + 2]) == best:
                    w[i : i + 2] = ["".join(best)]
    return merges


def clip_tokenizer(words: list[str], length: int) -> CLIPTokenizer:
    """BPE in which each of `words` is one token. Any other text falls back to bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges([[*word[:-1], f"{word[-1]}</w>"] for word in words])
    pieces = [*alphabet, *(f"{c}</w>" for c in alphabet), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def t5_tokenizer(words: list[str], length: int) -> T5Tokenizer:
    """A unigram vocabulary of exactly `words`; any other word is <unk>."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=specials + [(f"▁{w}", -1.0) for w in words], extra_ids=0, model_max_length=length)


def llama_tokenizer(words: list[str], length: int) -> LlamaTokenizer:
    """BPE in which each of `words`, with a mark for the blank before it, is one token. Other text falls back to
    bytes."""
    merges = _merges([list(f"▁{word}") for word in words])
    letters = sorted({c for word in words for c in f"▁{word}"})
    pieces = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *map("".join, merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return LlamaTokenizer(
        vocab=vocab, merges=merges, pad_token="<pad>", padding_side="right", add_bos_token=True, model_max_length=length
    )  # HunyuanVideo's mask assumes padding on the right


TOKENIZERS = {
    "CLIPTextModel": clip_tokenizer,
    "CLIPTextModelWithProjection": clip_tokenizer,
    "T5EncoderModel": t5_tokenizer,
    "UMT5EncoderModel": t5_tokenizer,
    "LlamaModel": llama_tokenizer,
}


# ---------------------------------------------------------------------------------------------------------------------
# Models


def build(cfg: dict) -> DiffusionPipeline:
    """The pipeline that configs/train/*.yaml describes, with random weights or with those of the folder `start`.

    Args:
        cfg: "start", a pipeline's folder or None; "pipeline", its class; "parts", the class (`_class_name`) and the
            sizes of each part. A text encoder gets its own tokenizer, which makes sequences of `length` tokens. With
            "start" only the denoiser is built from "parts". It takes every weight that fits, so that a denoiser with
            finer patches begins with trained blocks.
    """
    if cfg["start"]:
        pipe = getattr(diffusers, cfg["pipeline"]).from_pretrained(ROOT / cfg["start"], dtype=torch.float32)
        [(name, before)] = denoisers(pipe).items()
        known, model = before.state_dict(), _model(**cfg["parts"][name])
        zero_modulation(model)
        fits = {k: known[k] for k, v in model.state_dict().items() if k in known and known[k].shape == v.shape}
        model.load_state_dict(fits, strict=False)
        pipe.register_modules(**{name: model})
        return pipe
    words = WORDS + (MOVING_WORDS if cfg["frames"] > 1 else [])
    parts = {}
    for name, sizes in cfg["parts"].items():
        if name.startswith("text_encoder"):
            tokenizer = TOKENIZERS[sizes["_class_name"]](words, sizes["length"])
            parts[name.replace("text_encoder", "tokenizer")] = tokenizer
            parts[name] = _text_encoder(tokenizer, **sizes)
        else:
            parts[name] = _model(**sizes)
    pipe = getattr(diffusers, cfg["pipeline"])(**parts)
    zero_modulation(denoiser(pipe))
    return pipe


def denoiser(pipe) -> nn.Module:
    [network] = denoisers(pipe).values()
    return network


def _model(_class_name: str, **sizes) -> nn.Module:
    return getattr(diffusers, _class_name)(**sizes)


def _text_encoder(tokenizer, _class_name: str, length: int, **sizes) -> nn.Module:
    model = getattr(transformers, _class_name)
    specials = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    known = {k: v for k, v in specials.items() if v is not None}
    if "T5" not in _class_name:  # T5 has relative positions
        known["max_position_embeddings"] = length
    return model(model.config_class(vocab_size=len(tokenizer), **known, **sizes))


def zero_modulation(denoiser: nn.Module) -> None:
    """Set every adaLN modulation and the output projection to zero, so that each block begins as the identity
    (adaLN-Zero, Peebles & Xie 2023, arXiv:2212.09748, section 3.2). diffusers leaves them random."""
    for name, module in denoiser.named_modules():
        modulates = isinstance(module, nn.Linear) and (".norm" in name or name.endswith(".time_proj"))
        if modulates or name.startswith(("norm_out.linear", "proj_out", "conv_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
