"""A call that is interrupted leaves its state to the next one: only a pipeline's end resets it. The same holds for
MagCache, TaylorSeerCache, PyramidAttentionBroadcast and FasterCache. (The way out: model._reset_stateful_cache().)"""

import torch
from diffusers import (
    AutoencoderKLWan,
    FirstBlockCacheConfig,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

torch.manual_seed(0)
size = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, text_dim=24, freq_dim=16, ffn_dim=48)
model = WanTransformer3DModel(**size)
scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
pipe = WanPipeline(None, None, AutoencoderKLWan(base_dim=3, dim_mult=[1] * 4, num_res_blocks=1), scheduler, model)
pipe.set_progress_bar_config(disable=True)
model.enable_cache(FirstBlockCacheConfig(threshold=0.3))


def call(text, callback=None):
    ran.clear()
    options = dict(height=64, width=64, num_frames=1, num_inference_steps=8, guidance_scale=1.0, output_type="latent")
    pipe(prompt_embeds=text, **options, generator=torch.Generator().manual_seed(0), callback_on_step_end=callback)
    return len(ran)


ran, text = [], torch.randn(1, 5, 24)
model.blocks[1].attn1.to_q.register_forward_hook(lambda *_: ran.append(1))
before = call(-text)
try:
    call(text, callback=lambda *_: 1 / 0)  # Ctrl-C, or an error, after the first step
except ZeroDivisionError:
    print("steps computed:", before, "- after an interrupted call of another prompt:", call(-text))
# prints: steps computed: 1 - after an interrupted call of another prompt: 0
