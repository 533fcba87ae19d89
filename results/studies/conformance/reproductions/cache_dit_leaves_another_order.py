"""cache-dit 1.5.3: after a call and disable_cache the lists of blocks stand in another order. diffusers finds the first
block by it for FirstBlockCache, and then takes the first single block of FLUX."""

import cache_dit
import torch
from diffusers import FluxTransformer2DModel

size = dict(in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=16)
model = FluxTransformer2DModel(**size, joint_attention_dim=24, pooled_projection_dim=24, axes_dims_rope=(4, 6, 6))
cache_dit.enable_cache(model, cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1, num_inference_steps=4))
ids = dict(img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(5, 3))
with torch.no_grad():
    model(torch.randn(1, 16, 16), torch.randn(1, 5, 24), torch.zeros(1, 24), torch.ones(1), **ids)
cache_dit.disable_cache(model)
print(*[name for name, child in model.named_children() if "blocks" in name])
# prints: single_transformer_blocks transformer_blocks
