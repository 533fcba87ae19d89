"""cache-dit 1.5.3: on Wan without guidance every second step is taken for the other branch, unless it is told
enable_separate_cfg=False: two steps of warm-up become four."""

import cache_dit
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

size = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, text_dim=24, freq_dim=16, ffn_dim=48)
model = WanTransformer3DModel(**size)
scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
pipe = WanPipeline(None, None, AutoencoderKLWan(base_dim=3, dim_mult=[1] * 4, num_res_blocks=1), scheduler, model)
ran, text = [], torch.randn(1, 5, 24)
model.blocks[1].attn1.to_q.register_forward_hook(lambda *_: ran.append(1))
cache = cache_dit.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=9.0)
cache_dit.enable_cache(pipe, cache_config=cache)
options = dict(height=64, width=64, num_frames=1, num_inference_steps=8, guidance_scale=1.0, output_type="latent")
pipe(prompt_embeds=text, **options)
print("computed", len(ran), "steps")  # prints: computed 4 steps
