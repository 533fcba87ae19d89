"""The untrained pieces of a miniature FLUX: tokenizers made from the world's words, and small models."""

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from . import world

WORDS = sorted(
    {"a", "on", "background"}
    | {*world.SIZES, *world.COLOURS, *world.SHAPES, *world.BACKGROUNDS}
    | {word for relation in world.RELATIONS for word in relation.split()}
)


def clip_tokenizer(length: int) -> CLIPTokenizer:
    """BPE whose merges spell each of WORDS as one token; any other text falls back to bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(alphabet + [f"{c}</w>" for c in alphabet])}
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair, rest = pieces[:2], pieces[2:]
            pieces = ["".join(pair), *rest]
            if tuple(pair) not in merges:
                merges.append(tuple(pair))
            vocab.setdefault(pieces[0], len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def t5_tokenizer(length: int) -> T5Tokenizer:
    """A unigram vocabulary of exactly WORDS; any other word is <unk>."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=specials + [(f"▁{w}", -1.0) for w in WORDS], extra_ids=0, model_max_length=length)


def build_flux(cfg) -> FluxPipeline:
    """A FluxPipeline with random weights from the sizes in `cfg` (configs/train/flux.yaml)."""
    clip_tok, t5_tok = clip_tokenizer(cfg.text_tokens), t5_tokenizer(cfg.text_tokens)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tok),
            max_position_embeddings=cfg.text_tokens,
            bos_token_id=clip_tok.bos_token_id,
            eos_token_id=clip_tok.eos_token_id,
            pad_token_id=clip_tok.pad_token_id,
            **cfg.clip,
        )
    )
    t5 = T5EncoderModel(T5Config(vocab_size=len(t5_tok), **cfg.t5))
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**cfg.scheduler),
        vae=AutoencoderKL(**cfg.vae),
        text_encoder=clip,
        tokenizer=clip_tok,
        text_encoder_2=t5,
        tokenizer_2=t5_tok,
        transformer=FluxTransformer2DModel(**cfg.denoiser),
    )
    zero_modulation(pipe.transformer)
    return pipe


def zero_modulation(denoiser: nn.Module) -> None:
    """Start every adaLN modulation and the output projection at zero, so that each block begins as the identity
    (adaLN-Zero, Peebles & Xie 2023, arXiv:2212.09748, section 3.2); diffusers leaves them random."""
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and (".norm" in name or name.startswith(("norm_out", "proj_out"))):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
