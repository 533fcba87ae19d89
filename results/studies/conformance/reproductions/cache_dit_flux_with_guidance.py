"""cache-dit 1.5.3: on FLUX with true_cfg_scale the second branch reuses what the first one computed in the same step,
unless it is told enable_separate_cfg=True."""

import cache_dit
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

size = dict(in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=16)
model = FluxTransformer2DModel(**size, joint_attention_dim=24, pooled_projection_dim=24, axes_dims_rope=(4, 6, 6))
vae = AutoencoderKL(norm_num_groups=1, block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4)
pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, model)
ran, called = [], []
model.register_forward_pre_hook(lambda *_: called.append(1))
model.single_transformer_blocks[1].attn.to_q.register_forward_hook(lambda *_: ran.append((len(called) - 1) % 2))
rule = dict(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=9.0, max_continuous_cached_steps=1)
cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(**rule))
text = dict(prompt_embeds=torch.randn(1, 5, 24), pooled_prompt_embeds=torch.zeros(1, 24), true_cfg_scale=4.0)
text |= dict(negative_prompt_embeds=torch.randn(1, 5, 24), negative_pooled_prompt_embeds=torch.zeros(1, 24))
pipe(**text, height=64, width=64, num_inference_steps=6, output_type="latent")
print("first branch computed", ran.count(0), "of 6 steps, second branch", ran.count(1))
# prints: first branch computed 6 of 6 steps, second branch 0
