"""FasterCache asks every tensor that an attention is given for its batch. LTX-2's, whose guidance perturbs a block, is
given one without dimensions, and the call ends."""

import torch
from diffusers import FasterCacheConfig, LTX2VideoTransformer3DModel

size = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32)
sound = dict(audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16)
model = LTX2VideoTransformer3DModel(**size, **sound, num_layers=2, caption_channels=24, perturbed_attn=True)
rule = dict(spatial_attention_timestep_skip_range=(-1, 960), is_guidance_distilled=True)
model.enable_cache(FasterCacheConfig(**rule, current_timestep_callback=lambda: 980))
mask = torch.zeros(1, 1, 1)  # as the denoiser makes both
try:
    model.transformer_blocks[1].attn1(torch.randn(1, 4, 32), perturbation_mask=mask, all_perturbed=torch.all(mask == 0))
except IndexError as error:
    print(error)
# prints: Dimension specified as 0 but tensor has no dimensions
