"""cache-dit 1.5.3 on diffusers 0.42.1: the forward that it puts in the place of LTX-2's takes no sigma, which the
pipeline gives."""

import cache_dit
import torch
from diffusers import LTX2VideoTransformer3DModel

size = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32)
sound = dict(audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16)
model = LTX2VideoTransformer3DModel(**size, **sound, num_layers=2, caption_channels=24)
cache_dit.enable_cache(model, cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1))
try:
    model(sigma=torch.ones(1))
except TypeError as error:
    print(error)
# prints: __patch_transformer_forward__() got an unexpected keyword argument 'sigma'
