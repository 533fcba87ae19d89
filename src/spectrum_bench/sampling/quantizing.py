"""model.quantization: the weights of the denoiser's linear layers in 8 or 4 bits, through diffusers' own configs.

int8 and fp8 keep each row of a weight in 8 bits with one scale, by torchao, and multiply in the model's dtype. nf4 has
4 bits a weight and a scale for each block of 64 (arXiv:2305.14314, section 3), by bitsandbytes. gguf reads a file that
was quantized before. Everything else, text encoders and VAE too, stays in the model's dtype.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spectrum_bench.checks import brief, one_of
from spectrum_bench.errors import BadValue, UserError
from spectrum_bench.paths import locate

if TYPE_CHECKING:
    import torch

DENOISERS = ("transformer", "transformer_2", "unet")  # the parts that are quantized, as many as a pipeline has
EXAMPLE = "model.gguf={transformer: flux1-dev-Q4_0.gguf}"


class Quantization(NamedTuple):
    """A way to keep weights.

    Attributes:
        package: what has to be installed, by the name of its import.
        config: the dtype in which layers multiply -> a config of diffusers.
        size: bytes of a linear layer's weight, scales left out; None: the size of the file.
        on_gpu: whether it needs a GPU.
    """

    package: str
    config: Callable[["torch.dtype"], Any]
    size: float | None
    on_gpu: bool = False


def _torchao(kind: str) -> Callable[["torch.dtype"], Any]:
    def config(dtype: "torch.dtype") -> Any:
        import diffusers

        kinds = import_module("torchao.quantization")
        # its recommended settings of the compiler would stay, for all that the process compiles
        return diffusers.TorchAoConfig(getattr(kinds, kind)(set_inductor_config=False))

    return config


def _nf4(dtype: "torch.dtype") -> Any:
    import diffusers

    return diffusers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _gguf(dtype: "torch.dtype") -> Any:
    import diffusers

    return diffusers.GGUFQuantizationConfig(compute_dtype=dtype)


QUANTIZATIONS = {
    "int8": Quantization("torchao", _torchao("Int8WeightOnlyConfig"), 1),
    "fp8": Quantization("torchao", _torchao("Float8WeightOnlyConfig"), 1),
    "nf4": Quantization("bitsandbytes", _nf4, 0.5 + 4 / 64, on_gpu=True),
    "gguf": Quantization("gguf", _gguf, None),
}


def check_quantization_keys(way: object, files: object, init: str, offload: str) -> None:
    """The values of model.quantization and model.gguf, beside others of the model. Nothing is imported and no file is
    opened.

    Raises:
        BadValue: a value is of the wrong kind, or they do not fit together.
    """
    one_of("model.quantization", way, ("none", *QUANTIZATIONS))
    if not isinstance(files, Mapping) or not all(isinstance(file, str) and file for file in files.values()):
        raise BadValue(f"model.gguf={brief(files)} names no files: write {EXAMPLE}")
    if strangers := [name for name in files if name not in DENOISERS]:
        raise BadValue(
            f"model.gguf has {brief(strangers[0])}, which is none of {', '.join(DENOISERS)}: write {EXAMPLE}"
        )
    if way == "gguf" and not files:
        raise BadValue(f"model.quantization=gguf needs the quantized file: {EXAMPLE}")
    if files and way != "gguf":
        raise BadValue(f"model.gguf is read with model.quantization=gguf, not {way}")
    if offload == "sequential" and way != "none":  # accelerate makes each weight anew, which these do not bear
        raise BadValue(f"model.offload=sequential cannot move the weights of model.quantization={way}: use group")
    if way != "none" and init == "random":
        raise BadValue(
            f"model.quantization={way} is for weights of files: leave it out, or leave out model.init=random"
        )


def check_quantization(way: str, device: str | None) -> None:
    """Refuse what this machine cannot run. No model is loaded.

    Args:
        device: the run's; None: the GPU if there is one, else the CPU.

    Raises:
        UserError: a package is missing or too old, or there is no GPU where one is needed.
    """
    if way == "none":
        return
    given = QUANTIZATIONS[way]
    get = "pip install -U 'spectrum-bench[quant]'"
    if find_spec(given.package) is None:
        raise UserError(f"model.quantization={way} needs the package {given.package}: {get}")
    import torch

    if given.on_gpu and (device == "cpu" or not torch.cuda.is_available()):
        raise UserError(
            f"model.quantization={way} needs a GPU, and this run has none: model.quantization=int8 needs none"
        )
    try:
        given.config(torch.float32)
    except (ImportError, ValueError) as error:  # diffusers' own checks of the version
        raise UserError(f"model.quantization={way}: {' '.join(str(error).split())}: {get}") from None


def find_gguf(files: Mapping[str, str]) -> dict[str, Path]:
    """The local file of each part.

    Raises:
        UserError: one is missing or no GGUF.
    """
    paths = {part: locate(file) for part, file in files.items()}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"model.gguf: there is no file {path}")
        with path.open("rb") as file:
            if path.suffix != ".gguf" or file.read(4) != b"GGUF":
                raise UserError(f"model.gguf: {path} is no .gguf file: other formats are not read here")
    return paths


def quantized(pipeline: Path, index: Mapping[str, Any], way: str, gguf: Mapping[str, str], dtype: "torch.dtype") -> Any:
    """Arguments of `DiffusionPipeline.from_pretrained` that quantize the denoisers, or are quantized denoisers.

    Args:
        pipeline: the folder.
        index: its model_index.json.

    Raises:
        UserError: a file is of another model.
    """
    import diffusers

    if way == "none":
        return {}
    config = QUANTIZATIONS[way].config(dtype)
    present = [part for part in DENOISERS if isinstance(index.get(part), list) and index[part][0]]
    if way != "gguf":
        mapping = dict.fromkeys(present, config)
        return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping=mapping)}
    if set(gguf) != set(present):
        raise UserError(
            f"model.gguf names {', '.join(gguf)}, and {pipeline} has {', '.join(present)}: name a file for each"
        )
    read = {"quantization_config": config, "dtype": dtype, "config": str(pipeline), "local_files_only": True}
    parts = {}
    for part, path in find_gguf(gguf).items():
        kind = getattr(diffusers, index[part][1])
        try:
            parts[part] = kind.from_single_file(str(path), subfolder=part, **read)
        except (AttributeError, KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"model.gguf: {path} does not fit {kind.__name__}: {reason}") from None
    return parts
