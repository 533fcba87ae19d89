"""TaylorSeerCache without identifiers caches nothing in Wan and CogVideoX (their layers are called attn1), silently."""

from diffusers import CogVideoXTransformer3DModel, TaylorSeerCacheConfig, WanTransformer3DModel

small = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, text_dim=24)
wan = WanTransformer3DModel(**small, freq_dim=16, ffn_dim=48)
cog = CogVideoXTransformer3DModel(num_attention_heads=2, attention_head_dim=16, num_layers=2, text_embed_dim=24)
for model in (wan, cog):
    model.enable_cache(TaylorSeerCacheConfig())
    hooked = [part for part in model.modules() if getattr(part, "_diffusers_hook", None) and part._diffusers_hook.hooks]
    print(type(model).__name__, "hooked modules:", len(hooked))
# prints: WanTransformer3DModel hooked modules: 0
# prints: CogVideoXTransformer3DModel hooked modules: 0
