"""model.controlnet: a ControlNet (arXiv:2302.05543) on the model's pipeline, from a folder or repository in diffusers'
format.

diffusers has a class for each pipeline with a ControlNet, by the pipeline's name: FluxPipeline, FluxControlNetPipeline.
"""

import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum_bench.errors import UserError
from spectrum_bench.paths import locate

if TYPE_CHECKING:
    import torch


def find_controlnet(given: str) -> tuple[Path, str]:
    """The local folder of a ControlNet, and its class in diffusers. Nothing is downloaded; headers are read.

    Raises:
        UserError: it is not on this machine, is damaged, or is no ControlNet.
    """
    from safetensors import SafetensorError, safe_open

    folder = locate(given)
    if not folder.is_dir():
        folder = _of_repository(given)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if not isinstance(kind, str) or "ControlNet" not in kind:
        raise UserError(
            f"model.controlnet: {folder} is no ControlNet in diffusers' format (its config.json names none)"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"model.controlnet: {folder} has no .safetensors file: other formats can hold code")
    for file in files:
        try:
            safe_open(file, framework="np")
        except (SafetensorError, OSError) as error:
            raise UserError(f"model.controlnet: {file} is damaged ({error}): fetch it again") from None
    return folder, kind


def _of_repository(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise UserError(f"model.controlnet: {repo} is not on this machine: hf download {repo}") from None


def identify_controlnet(given: str | None) -> str:
    """Tells the ControlNet from others, wherever its files are: +controlnet=<hash of configuration and weights>."""
    if given is None:
        return ""
    folder, _ = find_controlnet(given)
    digest = hashlib.sha256()
    for file in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"+controlnet={digest.hexdigest()[:16]}"


def add_controlnet(pipe: Any, given: str | None, dtype: "torch.dtype") -> Any:
    """The pipeline with the ControlNet, if one is given.

    Raises:
        UserError: it is for another pipeline.
    """
    import diffusers

    if given is None:
        return pipe
    folder, kind = find_controlnet(given)
    network = getattr(diffusers, kind).from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    return controlled(pipe, network.eval())


def controlled(pipe: Any, network: Any) -> Any:
    """The pipeline of the same parts with a ControlNet.

    Raises:
        UserError: diffusers has none, or not with such a ControlNet.
    """
    import diffusers

    if "controlnet" in pipe.components:
        raise UserError(f"model.controlnet: {type(pipe).__name__} has a ControlNet of its own: leave it out")
    name = type(pipe).__name__.removesuffix("Pipeline") + "ControlNetPipeline"
    kind: Any = getattr(diffusers, name, None)
    if kind is None:
        raise UserError(f"model.controlnet: diffusers has no {name}: leave it out")
    taken = inspect.signature(kind.__init__).parameters
    given = {**pipe.config, **pipe.components}
    parts = {key: value for key, value in given.items() if key in taken}
    if not re.search(rf"\b{type(network).__name__}\b", str(taken["controlnet"].annotation)):
        raise UserError(f"model.controlnet: {name} takes another kind of network than {type(network).__name__}")
    return kind(**parts, controlnet=network)
