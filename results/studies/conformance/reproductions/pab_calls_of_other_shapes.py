"""PyramidAttentionBroadcast gives a call what an earlier one had, whatever its shape: Qwen-Image-2.1's first step sees
the prompt's tokens too, and the call ends."""

import diffusers
import torch

size = dict(in_channels=4, out_channels=4, num_layers=2, context_in_dim=24, axes_dims_rope=(4, 6, 6), mlp_ratio=2)
model = diffusers.QwenImage21Transformer2DModel(**size, num_attention_heads=2, attention_head_dim=16)


class Talk:  # in the place of a processor whose templates the pipeline measures
    apply_chat_template = staticmethod(lambda *given, **options: [[0]])
    encode = staticmethod(lambda text: [0])


Talk.tokenizer = Talk
pipe = diffusers.QwenImage21Pipeline(diffusers.FlowMatchEulerDiscreteScheduler(), None, None, Talk, model)
rule = dict(spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 2000))
model.enable_cache(diffusers.PyramidAttentionBroadcastConfig(**rule, current_timestep_callback=lambda: 500))
text = dict(prompt_embeds=torch.randn(1, 5, 24), height=64, width=64, output_type="latent", num_inference_steps=4)
try:
    pipe(**text)
except RuntimeError as error:
    print(error)
# prints: The size of tensor a (16) must match the size of tensor b (21) at non-singleton dimension 1
