"""MagCache counts the calls of each denoiser, so that the second expert of Wan2.2 begins at step 0 of the constants: it
computes its first steps again (retention), and takes the ratios of the first steps for those of the later ones."""

import torch
from diffusers import MagCacheConfig, WanTransformer3DModel

ran, small = [], dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, text_dim=24, freq_dim=16, ffn_dim=48)
experts = [WanTransformer3DModel(**small) for _ in range(2)]
for expert in experts:  # the ratios allow to skip from step 3 on, and never before
    expert.enable_cache(MagCacheConfig(0.5, 9, 0.3, num_inference_steps=10, mag_ratios=[9.0] * 3 + [1.0] * 7))
    expert.blocks[1].attn1.to_q.register_forward_hook(lambda *_: ran.append(step))
for step in range(10):
    expert = experts[step >= 5]
    with torch.no_grad(), expert.cache_context("cond"):
        expert(torch.randn(1, 16, 1, 8, 8), torch.tensor([1000 - 100 * step]), torch.randn(1, 5, 24))
print("computed steps", *ran)  # prints: computed steps 0 1 2 5 6 7
