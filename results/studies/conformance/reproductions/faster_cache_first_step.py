"""FasterCache for distilled guidance breaks a call if its range holds the first timestep: nothing is there to reuse."""

import torch
from diffusers import FasterCacheConfig, FluxTransformer2DModel

size = dict(in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=16)
model = FluxTransformer2DModel(**size, joint_attention_dim=24, pooled_projection_dim=24, axes_dims_rope=(4, 6, 6))
whole = dict(spatial_attention_timestep_skip_range=(-1, 2000), is_guidance_distilled=True)
model.enable_cache(FasterCacheConfig(**whole, current_timestep_callback=lambda: 1000))
ids = dict(img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(5, 3))
try:
    model(torch.randn(1, 16, 16), torch.randn(1, 5, 24), torch.zeros(1, 24), torch.ones(1), **ids)
except TypeError as error:
    print(error)  # prints: 'NoneType' object is not subscriptable
