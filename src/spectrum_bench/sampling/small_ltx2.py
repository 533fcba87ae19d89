"""LTX-2, small and random: a clip and its sound at once."""

from typing import Any

import diffusers
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

from spectrum_bench.sampling.small_parts import MASKS, PAIR, SIZES, Small, flow

HEADS = {f"{kind}_connector_num_attention_heads": 2 for kind in ("video", "audio")}
WIDTHS = {f"{kind}_connector_attention_head_dim": 12 for kind in ("video", "audio")}
DEPTHS = {f"{kind}_connector_num_layers": 1 for kind in ("video", "audio")}
REGISTERS = {f"{kind}_connector_num_learnable_registers": None for kind in ("video", "audio")}


def ltx2() -> Small:
    """Guidance takes three calls a step: both prompts, a perturbed block, and clip and sound each by itself."""
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        cross_attention_dim=32,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=24,
        perturbed_attn=True,
        **SIZES,
    )
    connectors = LTX2TextConnectors(
        caption_channels=24, text_proj_in_factor=1, **HEADS, **WIDTHS, **DEPTHS, **REGISTERS
    ).eval()
    parts = dict(text_encoder=None, tokenizer=None, vocoder=None, audio_vae=_of_sound(), vae=_of_clips())
    pipe = diffusers.LTX2Pipeline(flow(), connectors=connectors, transformer=transformer, **parts)
    guidance = dict(guidance_scale=4.0, stg_scale=1.0, modality_scale=3.0, spatio_temporal_guidance_blocks=[1])
    return pipe, PAIR | MASKS | guidance | dict(num_frames=9)


def _of_clips() -> Any:
    return diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    ).eval()


def _of_sound() -> Any:
    return diffusers.AutoencoderKLLTX2Audio(ch_mult=(1, 1, 1), num_res_blocks=1).eval()
