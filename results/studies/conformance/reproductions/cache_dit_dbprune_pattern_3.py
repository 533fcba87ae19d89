"""cache-dit 1.5.3: DBPrune breaks the call of a denoiser whose blocks return one tensor (patterns 3, 4 and 5)."""

import cache_dit
import torch
from diffusers import Flux2Transformer2DModel

size = dict(in_channels=16, num_layers=4, num_single_layers=4, num_attention_heads=2, attention_head_dim=16)
model = Flux2Transformer2DModel(**size, joint_attention_dim=24, axes_dims_rope=(4, 4, 4, 4))
cache = cache_dit.DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=0, num_inference_steps=4)
cache_dit.enable_cache(model, cache_config=cache)
given = dict(encoder_hidden_states=torch.randn(1, 5, 24), timestep=torch.ones(1), guidance=torch.ones(1))
try:
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(1, 12, 16), **given, img_ids=torch.zeros(12, 4), txt_ids=torch.zeros(5, 4))
except TypeError as error:
    print(error)
# prints: CachedBlocks_Pattern_3_4_5._process_block_outputs() takes 2 positional arguments but 3 were given
