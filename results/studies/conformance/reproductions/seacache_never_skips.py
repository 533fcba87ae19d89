"""SeaCache on FLUX never skips: the pipeline's cache_context tells no step, sigma or number of steps. It warns once."""

import torch
from diffusers import FluxTransformer2DModel, SeaCacheConfig

size = dict(in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=16)
model = FluxTransformer2DModel(**size, joint_attention_dim=24, pooled_projection_dim=24, axes_dims_rope=(4, 6, 6))
model.enable_cache(SeaCacheConfig(threshold=1000.0))
ran, latent, text = [], torch.randn(1, 16, 16), torch.randn(1, 5, 24)
model.transformer_blocks[1].attn.to_q.register_forward_hook(lambda *_: ran.append(1))
for step in range(6):
    with torch.no_grad(), model.cache_context("cond"):  # as FluxPipeline opens it
        ids = dict(img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(5, 3))
        model(latent, text, torch.zeros(1, 24), torch.tensor([1 - step / 6]), **ids)
print("computed", len(ran), "of 6 steps")  # prints: computed 6 of 6 steps
