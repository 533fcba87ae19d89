"""How many bytes of a model's weights are on the card at once, under model.offload and model.quantization."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from spectrum_bench.sampling.quantizing import DENOISERS, QUANTIZATIONS, find_gguf
from spectrum_bench.sampling.settings import ModelSettings

Sizes = dict[str, float]  # of one part: the path of a parameter or buffer -> its bytes


def weights_on_card(pipe: Any, model: ModelSettings) -> tuple[int, int]:
    """The most bytes while the denoiser runs, and the most while another part does (a text encoder or the VAE), which
    is 0 if nothing is offloaded. Scales of quantized weights are left out, except in a gguf file.

    Args:
        pipe: on any device, the meta device too. Its weights are not quantized.
    """
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    sizes = {name: _sizes(name, part, model) for name, part in parts.items()}
    if model.offload == "none":
        return sum(int(sum(each.values())) for each in sizes.values()), 0
    held = {name: HELD[model.offload](parts[name], each) for name, each in sizes.items()}
    denoisers = [held.pop(name) for name in DENOISERS if name in held]
    return int(max(denoisers, default=0)), int(max(held.values(), default=0))


def _sizes(name: str, part: nn.Module, model: ModelSettings) -> Sizes:
    tensors: dict[str, Tensor] = dict(part.named_parameters()) | dict(part.named_buffers())
    sizes: Sizes = {path: tensor.nbytes for path, tensor in tensors.items()}
    if name not in DENOISERS or model.quantization == "none":
        return sizes
    size = QUANTIZATIONS[model.quantization].size
    if size is None:
        factor = find_gguf(model.gguf)[name].stat().st_size / sum(sizes.values())
        return {path: factor * each for path, each in sizes.items()}
    linear = {f"{path}.weight": module.weight for path, module in part.named_modules() if isinstance(module, nn.Linear)}
    return sizes | {path: size * weight.numel() for path, weight in linear.items()}


def _by_block(part: nn.Module, sizes: Sizes) -> float:
    """The largest block, and all that lies outside of blocks: it stays while the part runs."""
    lists = [name for name, child in part.named_children() if isinstance(child, (nn.ModuleList, nn.Sequential))]
    blocks: dict[str, float] = {}
    outside = 0.0
    for path, size in sizes.items():
        name, _, rest = path.partition(".")
        if name in lists:
            block = f"{name}.{rest.partition('.')[0]}"
            blocks[block] = blocks.get(block, 0.0) + size
        else:
            outside += size
    return outside + max(blocks.values(), default=0.0)


def _by_layer(part: nn.Module, sizes: Sizes) -> float:
    """The largest layer: the module that holds a parameter itself."""
    layers: dict[str, float] = {}
    for path, size in sizes.items():
        layer = path.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0.0) + size
    return max(layers.values(), default=0.0)


# model.offload -> the bytes of one part that are on the card at once while it runs.
HELD: dict[str, Callable[[nn.Module, Sizes], float]] = {
    "model": lambda part, sizes: sum(sizes.values()),
    "group": _by_block,
    "sequential": _by_layer,
}
