"""cache-dit 1.5.3: a calibrator breaks Stable Diffusion 3, whose last block returns no text."""

import cache_dit
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

size = dict(sample_size=8, in_channels=4, out_channels=4, num_layers=3, num_attention_heads=2, attention_head_dim=16)
model = SD3Transformer2DModel(**size, joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=24)
parts = (FlowMatchEulerDiscreteScheduler(), AutoencoderKL(norm_num_groups=1, block_out_channels=(4,)), *[None] * 6)
pipe = StableDiffusion3Pipeline(model, *parts)
cache = cache_dit.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=9.0)
cache_dit.enable_cache(pipe, cache_config=cache, calibrator_config=cache_dit.TaylorSeerCalibratorConfig())
text = dict(prompt_embeds=torch.randn(1, 5, 24), pooled_prompt_embeds=torch.zeros(1, 24), guidance_scale=0.0)
try:
    pipe(**text, height=8, width=8, num_inference_steps=4, output_type="latent")
except Exception as error:
    print(error)  # prints: State 'transformer_blocks_Bn_residual' not found.
