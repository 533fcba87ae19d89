"""PyramidAttentionBroadcast keeps one state for both guidance branches: each conditional call computes, and the
unconditional one gets its attention."""

import torch
from diffusers import PyramidAttentionBroadcastConfig, WanTransformer3DModel

size = dict(num_attention_heads=2, attention_head_dim=16, num_layers=1, text_dim=24, freq_dim=16, ffn_dim=48)
model = WanTransformer3DModel(**size)
rule = dict(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500)
model.enable_cache(PyramidAttentionBroadcastConfig(**rule))
ran = []
model.blocks[0].attn1.to_q.register_forward_hook(lambda *_: ran.append(branch))
for _step in range(4):
    for branch in ("cond", "uncond"):
        with torch.no_grad(), model.cache_context(branch):
            model(torch.randn(1, 16, 1, 8, 8), torch.tensor([500]), torch.randn(1, 5, 24))
print(*ran)  # prints: cond cond cond cond
