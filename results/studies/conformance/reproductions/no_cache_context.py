"""Caches that need a cache_context break the call of pipelines that open none, although their denoiser takes one."""

import inspect

import diffusers

for name in ("FluxPipeline", "FluxKontextPipeline", "Flux2KleinPipeline", "Flux2Pipeline"):
    pipeline = getattr(diffusers, name)
    print(name, "opens a context:", "cache_context(" in inspect.getsource(pipeline.__call__))
# prints: FluxPipeline opens a context: True
# prints: FluxKontextPipeline opens a context: False
# prints: Flux2KleinPipeline opens a context: True
# prints: Flux2Pipeline opens a context: False
