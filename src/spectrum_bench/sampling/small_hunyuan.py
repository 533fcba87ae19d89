"""HunyuanVideo's pipelines, small and random."""

from typing import Any

import diffusers
import torch
import transformers

from spectrum_bench.sampling.small_parts import MASKS, PICTURE, POOLED_PAIR, SIZES, Small, flow, text


def hunyuan() -> Small:
    """HunyuanVideo; with true_cfg_scale above 1 a step has two calls."""
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        text_embed_dim=24,
        pooled_projection_dim=24,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=True,
        **SIZES,
    )
    pipe = diffusers.HunyuanVideoPipeline(None, None, transformer, _hunyuan_vae(), flow(shift=7.0), None, None)
    return pipe, POOLED_PAIR | MASKS | dict(guidance_scale=6.0, true_cfg_scale=4.0, num_frames=5)


def _hunyuan_vae() -> Any:
    blocks = dict(down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4)
    sizes = dict(block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=16, norm_num_groups=1)
    return diffusers.AutoencoderKLHunyuanVideo(**blocks, **sizes).eval()


def _hunyuan15(kind: Any, target_size: int = 640, **more: Any) -> Small:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=24,
        text_embed_2_dim=12,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
        target_size=target_size,
        **SIZES,
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(32,) * 5, layers_per_block=1)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=6.0)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    parts = dict(transformer=transformer, vae=vae.eval(), scheduler=flow(shift=5.0), guider=guider)
    glyphs = dict(prompt_embeds_2=torch.zeros(1, 3, 12), prompt_embeds_mask_2=torch.zeros(1, 3))
    given = dict(prompt_embeds=text(5), prompt_embeds_mask=torch.ones(1, 5)) | glyphs
    negative = {f"negative_{name}": value for name, value in given.items()}
    negative |= dict(negative_prompt_embeds=text(5, seed=8))
    return kind(**parts, **absent, **more), given | negative | dict(num_frames=5)


def hunyuan15() -> Small:
    """HunyuanVideo-1.5: the guidance is a part of the pipeline, and a glyph encoder's tokens are beside the text's."""
    return _hunyuan15(diffusers.HunyuanVideo15Pipeline)


def hunyuan15_i2v() -> Small:
    """The first frame is among the channels, and what an image encoder makes of it beside the text. The clip has the
    frame's shape, in the size of the weights."""
    vision = transformers.SiglipVisionConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    encoder = transformers.SiglipVisionModel(vision).eval()
    patches = transformers.SiglipImageProcessor(size=dict(height=32, width=32))
    kind = diffusers.HunyuanVideo15ImageToVideoPipeline
    pipe, arguments = _hunyuan15(kind, target_size=64, image_encoder=encoder, feature_extractor=patches)
    return pipe, arguments | dict(image=PICTURE)
