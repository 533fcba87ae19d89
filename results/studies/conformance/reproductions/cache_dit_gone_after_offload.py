"""cache-dit 1.5.3: enabled on a pipeline under enable_model_cpu_offload, it is gone after the first call, silently. The
pipeline makes its hooks anew at the end of a call, and takes cache-dit's forward away with the old ones."""

import cache_dit
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

torch.manual_seed(0)
size = dict(in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=16)
model = FluxTransformer2DModel(**size, joint_attention_dim=24, pooled_projection_dim=24, axes_dims_rope=(4, 6, 6))
pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, model)
pipe.set_progress_bar_config(disable=True)
pipe.enable_model_cpu_offload(device="cpu")  # the same with a GPU
cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=9.0))
for call in range(2):
    ran = []
    handle = model.transformer_blocks[1].attn.register_forward_hook(lambda *_: ran.append(1))  # noqa: B023
    pipe(prompt_embeds=torch.randn(1, 5, 24), pooled_prompt_embeds=torch.randn(1, 24), height=64, width=64,
         num_inference_steps=20, output_type="latent")  # fmt: skip
    handle.remove()
    print(f"call {call + 1}: the second block ran in {len(ran)} of 20 steps")
# prints: call 1: the second block ran in 8 of 20 steps
#         call 2: the second block ran in 20 of 20 steps
