"""FirstBlockCache breaks the call of Flux2Transformer2DModel: its second stack gets text and image as one tensor."""

import torch
from diffusers import FirstBlockCacheConfig, Flux2Transformer2DModel

size = dict(in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=16)
model = Flux2Transformer2DModel(**size, joint_attention_dim=24, axes_dims_rope=(4, 4, 4, 4))
model.enable_cache(FirstBlockCacheConfig(threshold=-1.0))  # which never skips
given = dict(encoder_hidden_states=torch.randn(1, 5, 24), timestep=torch.ones(1), guidance=torch.ones(1))
try:
    with torch.no_grad(), model.cache_context("cond"):
        model(torch.randn(1, 12, 16), **given, img_ids=torch.zeros(12, 4), txt_ids=torch.zeros(5, 4))
except TypeError as error:
    print(error)  # prints: unsupported operand type(s) for -: 'Tensor' and 'list'
