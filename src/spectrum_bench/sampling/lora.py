"""LoRA files on a pipeline: beside its layers, through diffusers and peft, or added into their weights (fuse).

A LoRA adds a product of two small matrices to a layer's weights (arXiv:2106.09685, section 4.1).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spectrum_bench.checks import brief, number
from spectrum_bench.errors import BadValue, UserError
from spectrum_bench.paths import locate
from spectrum_bench.sampling.reading import tensor_names

Lora = Mapping[str, Any]  # file, or repo and perhaps file, the name of one in it; weight; perhaps fuse
EXAMPLE = "write [{file: style.safetensors, weight: 0.8}]"
KEYS = {"repo", "file", "weight", "fuse"}
FACTOR = re.compile(r".+\.lora_[AB]\.weight")  # as diffusers saves one: part.layer.lora_A.weight


def check_loras(given: object) -> tuple[Lora, ...]:
    """The value of model.lora. No file is opened.

    Raises:
        BadValue: it is no list of {repo|file, weight, fuse}.
    """
    if not isinstance(given, (list, tuple)):
        raise BadValue(f"model.lora={brief(given)} is no list: {EXAMPLE}")
    return tuple(_checked(each) for each in given)


def _checked(lora: object) -> Lora:
    if not isinstance(lora, Mapping) or not lora.keys() & {"repo", "file"} or lora.keys() - KEYS:
        raise BadValue(f"model.lora has {brief(lora)}: {EXAMPLE}, or repo in the place of file")
    for key in lora.keys() & {"repo", "file"}:
        if not isinstance(lora[key], str) or not lora[key]:
            raise BadValue(f"model.lora: {key}={brief(lora[key])} is no text: {EXAMPLE}")
    if not isinstance(lora.get("fuse", False), bool):
        raise BadValue(f"model.lora: fuse={brief(lora['fuse'])}: write true or false")
    return {**lora, "weight": number("model.lora: weight", lora.get("weight", 1.0), -100, 100)}


def find_lora(lora: Lora) -> Path:
    """The local file. Nothing is downloaded; the header of the file is read.

    Raises:
        UserError: the file is missing, no safetensors file, damaged or no LoRA, or peft is needed and not installed.
    """
    if not lora.get("fuse") and find_spec("peft") is None:
        raise UserError("model.lora needs the package peft: pip install 'spectrum-bench[lora]'; or add fuse: true")
    path = _of_repository(lora) if "repo" in lora else locate(lora["file"])
    if path.suffix != ".safetensors":
        raise UserError(f"model.lora: {path} is no .safetensors file: other formats can hold code and are not read")
    if not path.is_file():
        raise UserError(f"model.lora: there is no file {path}")
    if not any("lora" in name for name in tensor_names(path, "model.lora")):
        raise UserError(f"model.lora: {path} holds no LoRA: none of its tensors is called so")
    return path


def _of_repository(lora: Lora) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repo = lora["repo"]
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise UserError(f"model.lora: {repo} is not on this machine: hf download {repo}") from None
    files = [folder / lora["file"]] if "file" in lora else sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UserError(f"model.lora: {repo} has these .safetensors files: {names}; name one with file=")
    return files[0]


def identify_loras(loras: Sequence[Lora]) -> str:
    """Tells the LoRAs from others, wherever their files are: +<hash of the content>*<weight> for each, and whether it
    is fused, which rounds otherwise."""
    return "".join(
        f"+{hashlib.sha256(find_lora(lora).read_bytes()).hexdigest()[:16]}*{lora['weight']:g}"
        + ("fused" if lora.get("fuse") else "")
        for lora in loras
    )


def add_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Put the LoRAs on the pipeline, each with its weight; those to be fused first.

    Raises:
        UserError: the pipeline takes none, or one is of another model.
    """
    for lora in loras:
        if lora.get("fuse"):
            fuse(pipe, find_lora(lora), lora["weight"])
    loras = [lora for lora in loras if not lora.get("fuse")]
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise UserError(f"model.lora: {type(pipe).__name__} takes no LoRA: leave it out")
    names = [f"lora{i}" for i in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        path = find_lora(lora)
        try:
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name, local_files_only=True)
        except (ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"model.lora: {path} does not fit {type(pipe).__name__}: {reason}") from None
        if not any(name in adapters for adapters in pipe.get_list_adapters().values()):
            raise UserError(f"model.lora: no tensor of {path} is for a part of {type(pipe).__name__}")
    pipe.set_adapters(names, [lora["weight"] for lora in loras])


def fuse(pipe: Any, path: Path, weight: float) -> None:
    """Add a LoRA to the weights, W + weight B A, so that it costs nothing at a step and peft is not needed. The file
    names its matrices as diffusers saves them: <part>.<layer>.lora_A.weight (rank, in), ....lora_B.weight (out, rank).

    Raises:
        UserError: it has tensors of other names or a scale of its own, or is of another model.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        factors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - it is no dict
        strange = [f"the tensor {name}" for name in factors if not FACTOR.fullmatch(name)]
        strange += ["a scale of its own"] if "lora_adapter_metadata" in (file.metadata() or {}) else []
    if strange:
        raise UserError(f"model.lora: {path} has {strange[0]}, which fuse does not read: leave fuse out, peft reads it")
    for name in sorted({name.rpartition(".lora_")[0] for name in factors}):
        part, _, layer = name.partition(".")
        try:
            own = getattr(pipe, part).get_submodule(layer).weight.data
            added = weight * factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
            if added.shape != own.shape:
                raise ValueError(f"{tuple(added.shape)} is to be added to {tuple(own.shape)}")
        except (AttributeError, KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"model.lora: {path} does not fit {type(pipe).__name__} at {name}: {reason}") from None
        own.copy_(own.float() + added.to(own.device))
