"""model.ip_adapter: an IP-Adapter (arXiv:2308.06721), by which blocks attend to a picture too, through diffusers.

The adapter is one file; the network that encodes the picture is a folder in transformers' format.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum_bench.checks import brief, number
from spectrum_bench.errors import BadValue, UserError
from spectrum_bench.paths import locate
from spectrum_bench.sampling.reading import tensor_names

if TYPE_CHECKING:
    import torch

EXAMPLE = "write {file: ip_adapter.safetensors, encoder: clip-vit-large-patch14, weight: 0.6}"
# The encoder's `model_type` -> its class in transformers, and that of its pictures' processor.
ENCODERS = {
    "clip": ("CLIPVisionModelWithProjection", "CLIPImageProcessor"),
    "clip_vision_model": ("CLIPVisionModelWithProjection", "CLIPImageProcessor"),
    "siglip": ("SiglipVisionModel", "SiglipImageProcessor"),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipImageProcessor"),
}


def check_ip_adapter(given: object) -> Mapping[str, Any]:
    """The value of model.ip_adapter. No file is opened.

    Raises:
        BadValue: it is no {file, encoder, weight}.
    """
    if not isinstance(given, Mapping) or not {"file", "encoder"} <= given.keys() <= {"file", "encoder", "weight"}:
        raise BadValue(f"model.ip_adapter={brief(given)}: {EXAMPLE}")
    for key in ("file", "encoder"):
        if not isinstance(given[key], str) or not given[key]:
            raise BadValue(f"model.ip_adapter: {key}={brief(given[key])} is no text: {EXAMPLE}")
    return {**given, "weight": number("model.ip_adapter: weight", given.get("weight", 1.0), -100, 100)}


def find_ip_adapter(given: Mapping[str, Any]) -> tuple[Path, Path, str]:
    """The local file, the encoder's folder and its `model_type`. Nothing is downloaded; headers are read.

    Raises:
        UserError: one is missing, is damaged, or is something else.
    """
    file, folder = locate(given["file"]), locate(given["encoder"])
    if file.suffix != ".safetensors" or not file.is_file():
        raise UserError(f"model.ip_adapter: there is no .safetensors file {file}; other formats can hold code")
    names = tensor_names(file, "model.ip_adapter")
    if not any(name.startswith(("image_proj.", "ip_adapter_proj_model.")) for name in names):
        raise UserError(f"model.ip_adapter: {file} holds no IP-Adapter: none of its tensors projects a picture")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind not in ENCODERS or not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model.ip_adapter: encoder={folder} is no folder of a CLIP or SigLIP with .safetensors files, as the "
            "adapter's page names it"
        )
    return file, folder, kind


def identify_ip_adapter(given: Mapping[str, Any]) -> str:
    """Tells the adapter from others, wherever its files are: +ip_adapter=<hash of file and encoder>*<weight>."""
    if not given:
        return ""
    file, folder, _ = find_ip_adapter(given)
    digest = hashlib.sha256()
    for path in [file, folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"+ip_adapter={digest.hexdigest()[:16]}*{given['weight']:g}"


def add_ip_adapter(pipe: Any, given: Mapping[str, Any], dtype: "torch.dtype") -> None:
    """Put the adapter on the pipeline, with its weight.

    Raises:
        UserError: the pipeline takes none, or it is of another model.
    """
    if not given:
        return
    if not hasattr(pipe, "load_ip_adapter"):
        raise UserError(f"model.ip_adapter: {type(pipe).__name__} takes none: leave it out")
    import transformers

    file, folder, kind = find_ip_adapter(given)
    model, processor = (getattr(transformers, name) for name in ENCODERS[kind])
    encoder = model.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True).eval()
    size = encoder.config.image_size
    of_pictures = (
        processor.from_pretrained(folder, local_files_only=True)
        if (folder / "preprocessor_config.json").is_file()
        else processor(size={"height": size, "width": size}, crop_size={"height": size, "width": size})
    )
    pipe.register_modules(image_encoder=encoder.to(pipe.device), feature_extractor=of_pictures)
    try:
        pipe.load_ip_adapter(str(file.parent), weight_name=file.name, subfolder="", local_files_only=True)
        pipe.set_ip_adapter_scale(given["weight"])
    except (ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.ip_adapter: {file} does not fit {type(pipe).__name__}: {reason}") from None
