"""SeaCache, enabled on a pipeline under enable_model_cpu_offload, is gone after the first call, silently. Its hook is
on the denoiser itself, whose forward the pipeline makes anew at the end of a call. Guided FasterCache has such a hook
too. (The way out: offload after enable_cache.)"""

import torch
from diffusers import AutoencoderKLWan, SeaCacheConfig, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

torch.manual_seed(0)
size = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, text_dim=24, freq_dim=16, ffn_dim=48)
model = WanTransformer3DModel(**size)
scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
pipe = WanPipeline(None, None, AutoencoderKLWan(base_dim=3, dim_mult=[1] * 4, num_res_blocks=1), scheduler, model)
pipe.set_progress_bar_config(disable=True)
ran, text = [], torch.randn(1, 5, 24)
model.blocks[1].attn1.to_q.register_forward_hook(lambda *_: ran.append(1))
pipe.enable_model_cpu_offload(device="cpu")  # the same with a GPU
model.enable_cache(SeaCacheConfig(threshold=1000.0))
options = dict(height=64, width=64, num_frames=1, num_inference_steps=8, guidance_scale=1.0, output_type="latent")
for _ in range(2):
    ran.clear()
    pipe(prompt_embeds=text, **options, generator=torch.Generator().manual_seed(0))
    print("computed", len(ran), "of 8 steps")
# prints: computed 4 of 8 steps
#         computed 8 of 8 steps
