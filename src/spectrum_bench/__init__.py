"""The referee for training-free acceleration of diffusion sampling.

with spectrum_bench.accelerate(pipe, "spectrum", w=0.5, num_inference_steps=50) as run:
    image = run(prompt, guidance_scale=3.5).images[0]
print(run.computed_steps)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectrum_bench.version import __version__

if TYPE_CHECKING:
    from spectrum_bench.caching.algorithm import Algorithm
    from spectrum_bench.caching.session import cached
    from spectrum_bench.commands.accelerate import accelerate, algorithms

__all__ = ["Algorithm", "__version__", "accelerate", "algorithms", "cached"]
_PLACES = {
    "Algorithm": "spectrum_bench.caching.algorithm",
    "cached": "spectrum_bench.caching.session",
    "accelerate": "spectrum_bench.commands.accelerate",
    "algorithms": "spectrum_bench.commands.accelerate",
}


def __getattr__(name: str) -> Any:
    """The library's names, imported on use: `import spectrum_bench` needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
