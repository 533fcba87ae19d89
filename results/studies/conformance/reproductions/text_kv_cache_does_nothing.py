"""TextKVCache is for one class of denoiser; any other takes it, computes as before, and says nothing."""

from diffusers import FluxTransformer2DModel, TextKVCacheConfig

size = dict(in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=16)
model = FluxTransformer2DModel(**size, joint_attention_dim=24, pooled_projection_dim=24, axes_dims_rope=(4, 6, 6))
model.enable_cache(TextKVCacheConfig())
hooked = [name for name, part in model.named_modules() if name and getattr(part, "_diffusers_hook", None)]
print("cached:", model.is_cache_enabled, "- hooked blocks:", len(hooked))  # prints: cached: True - hooked blocks: 0
