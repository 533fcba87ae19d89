"""The untrained pieces of a miniature FLUX: tokenizers made from the world's words, and small models."""

import json

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from . import world

WORDS = sorted(
    {"a", "on", "background"}
    | {*world.SIZES, *world.COLOURS, *world.SHAPES, *world.BACKGROUNDS}
    | {word for relation in world.RELATIONS for word in relation.split()}
)


def clip_tokenizer(length: int) -> CLIPTokenizer:
    """BPE learnt on WORDS until each is one token; any other text falls back to bytes."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    ends = [f"{c}</w>" for c in sorted(alphabet)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>"),
    )
    learnt = json.loads(bpe.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].get)
    pieces += [end for end in ends if end not in learnt["vocab"]] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(m) for m in learnt["merges"]], model_max_length=length)


def t5_tokenizer(length: int) -> T5Tokenizer:
    """A unigram vocabulary of exactly WORDS; any other word is <unk>."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=specials + [(f"▁{w}", -1.0) for w in WORDS], extra_ids=0, model_max_length=length)


def build_flux(sizes: dict) -> FluxPipeline:
    """A FluxPipeline with random weights, of the sizes in configs/train/flux.yaml."""
    length = sizes["text_tokens"]
    clip_tok, t5_tok = clip_tokenizer(length), t5_tokenizer(length)
    clip = CLIPTextConfig(
        vocab_size=len(clip_tok),
        max_position_embeddings=length,
        bos_token_id=clip_tok.bos_token_id,
        eos_token_id=clip_tok.eos_token_id,
        pad_token_id=clip_tok.pad_token_id,
        **sizes["clip"],
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**sizes["scheduler"]),
        vae=AutoencoderKL(**sizes["vae"]),
        text_encoder=CLIPTextModel(clip),
        tokenizer=clip_tok,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(t5_tok), **sizes["t5"])),
        tokenizer_2=t5_tok,
        transformer=FluxTransformer2DModel(**sizes["denoiser"]),
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
