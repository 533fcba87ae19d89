"""Finding a model's weights and loading its pipeline."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrum_bench.errors import UserError
from spectrum_bench.paths import locate
from spectrum_bench.sampling.controlnet import add_controlnet, identify_controlnet
from spectrum_bench.sampling.ip_adapter import add_ip_adapter, identify_ip_adapter
from spectrum_bench.sampling.lora import add_loras, identify_loras
from spectrum_bench.sampling.quantizing import check_quantization, find_gguf, quantized
from spectrum_bench.sampling.runtime import OFFLOADS, check_machine
from spectrum_bench.sampling.settings import ModelSettings, RunSettings

SETTINGS = {".json", ".txt", ".model"}  # suffixes of the settings of a pipeline's parts, tokenizers included

ModelIndex = dict[str, Any]  # model_index.json: a part's name -> its [library, class], and settings of the pipeline


def find_weights(repo: str, revision: str | None = None) -> Path:
    """The local folder of a diffusers pipeline: a path, or a Hugging Face repository already downloaded.

    Nothing is downloaded. The header of every safetensors file tells whether the file is complete.

    Args:
        revision: the commit of a repository; None: the newest one that was fetched.

    Raises:
        UserError: the weights are not on this machine, are damaged, or are no pipeline.
    """
    from safetensors import SafetensorError, safe_open

    folder = locate(repo)
    if folder.is_dir() and revision is not None:
        raise UserError(f"model.revision is a commit of a repository, and {repo} is a folder: leave it out")
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except IncompleteSnapshotError as error:  # expected: download.py leaves out files that a pipeline does not need
            folder = Path(error.snapshot_path)
        except (HFValidationError, LocalEntryNotFoundError):
            if repo.startswith("assets/"):
                raise UserError(
                    f"{repo} is not in the installed package: work in a checkout, or set SPECTRUM_BENCH_ASSETS to the "
                    "assets/ folder of one"
                ) from None
            if repo.startswith(("/", ".", "~")):
                raise UserError(f"there is no folder {repo}: model.repo names a folder or a repository") from None
            at = f" at commit {revision}" if revision else ""
            raise UserError(
                f"the weights of {repo}{at} are not on this machine: python download.py model=<name>"
            ) from None
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is no diffusers pipeline (no model_index.json): name its folder in model.repo")
    for part in parts(index_of(folder)):
        if not (folder / part).is_dir():
            raise UserError(f"{folder} has no {part}, which its model_index.json names: fetch {repo} again")
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            safe_open(file, framework="np")  # "pt" would import torch
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged ({error}): fetch it again") from None
    return folder


def parts(index: ModelIndex) -> list[str]:
    """The names of a diffusers pipeline's parts, which are its folders, from its model_index.json."""
    return [name for name, kind in index.items() if isinstance(kind, list) and kind[0]]


def index_of(folder: Path) -> ModelIndex:
    """The model_index.json of a pipeline's folder."""
    index: ModelIndex = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return index


def fingerprint(folder: Path) -> str:
    """Tells a pipeline from others of the same name: the hub's commit, or a hash of the files of its parts.

    The hash covers the name, the size and 8 MiB at either end of each file: all of a miniature, and enough of a large
    model.
    """
    if folder.parent.name == "snapshots":
        return folder.name
    of_parts = [path for part in sorted(parts(index_of(folder))) for path in sorted((folder / part).rglob("*"))]
    paths = [path for path in of_parts if path.suffix in SETTINGS | {".safetensors"}]
    return _hash({str(path.relative_to(folder)): path for path in paths})


def _hash(paths: Mapping[str, Path]) -> str:
    """A hash of files by name: of each the name, the size and 8 MiB at either end."""
    digest = hashlib.sha256()
    for name, path in paths.items():
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{name} {size}\n".encode() + file.read(2**23))
            file.seek(max(0, size - 2**23))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def pipeline_class(model: ModelSettings, index: ModelIndex) -> Any:
    """The class of diffusers' pipeline: model.pipeline, or the one that the model_index.json names.

    Raises:
        UserError: diffusers has none of the name that model.pipeline gives, or it needs other parts.
    """
    import diffusers

    if model.pipeline is None:
        return getattr(diffusers, index["_class_name"], diffusers.DiffusionPipeline)
    kind = getattr(diffusers, model.pipeline, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise UserError(f"model.pipeline={model.pipeline} is no pipeline of diffusers: write e.g. FluxKontextPipeline")
    needed = {name for name, given in inspect.signature(kind).parameters.items() if given.default is given.empty}
    if missing := needed - index.keys():
        raise UserError(f"model.pipeline={model.pipeline} needs a {min(missing)}, which {model.repo} does not have")
    return kind


def identify(model: ModelSettings) -> str:
    """Tells the model's weights from others of the same name: the `fingerprint`, or "random" (all have one seed), and
    what tells its quantized files, ControlNet, IP-Adapter and LoRAs.

    Raises:
        UserError: the weights are not on this machine.
    """
    weights = "random" if model.init == "random" else fingerprint(find_weights(_repo(model), model.revision))
    files = {part: _hash({part: path}) for part, path in find_gguf(model.gguf).items()}
    quantized_files = "".join(f"+{part}={files[part]}" for part in sorted(files))
    conditions = identify_controlnet(model.controlnet) + identify_ip_adapter(model.ip_adapter)
    return weights + quantized_files + conditions + identify_loras(model.lora)


def _repo(model: ModelSettings) -> str:
    if model.repo is None:
        raise UserError(f"model={model.name} names no repo: write a folder or a Hugging Face repository into its YAML")
    return model.repo


def open_pipeline(settings: RunSettings) -> tuple[Any, str]:
    """The pipeline of a run and its device: `settings.device`, else the GPU if there is one, else the CPU."""
    import torch

    check_machine(settings.model.offload, settings.device)
    check_quantization(settings.model.quantization, settings.device)
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        torch.set_num_threads(settings.threads)
    else:  # otherwise events of cuda:1 would be recorded on cuda:0
        torch.cuda.set_device(torch.device(device).index or 0)
    return load_pipeline(settings.model, device), device


def load_pipeline(model: ModelSettings, device: str) -> Any:
    """A diffusers pipeline in eval mode on `device`. It is loaded from safetensors, without remote code or network.

    Raises:
        UserError: files are missing.
    """
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe = LOADERS[model.init](model, device if model.offload == "none" else "cpu")
    if model.vae_tiling:
        pipe.vae.enable_tiling()
    if model.vae_slicing:
        pipe.vae.enable_slicing()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **model.scheduler)
    pipe.set_progress_bar_config(disable=True)
    add_loras(pipe, model.lora)
    OFFLOADS[model.offload](pipe, device)
    return pipe


def _pretrained(model: ModelSettings, device: str) -> Any:
    import torch

    folder = find_weights(_repo(model), model.revision)
    kind = pipeline_class(model, index_of(folder))
    dtype = {"default": getattr(torch, model.dtype), "vae": getattr(torch, model.vae_dtype or model.dtype)}
    which = {"variant": model.variant, "use_safetensors": True, "local_files_only": True}
    which |= quantized(folder, index_of(folder), model.quantization, model.gguf, dtype["default"])
    try:
        pipe = kind.from_pretrained(folder, dtype=dtype, **which)
    except (OSError, ValueError) as error:  # a shard or tokenizer file is missing
        raise UserError(f"{folder} cannot be loaded ({error}): fetch {model.repo} again") from None
    pipe = add_controlnet(pipe, model.controlnet, dtype["default"])
    add_ip_adapter(pipe, model.ip_adapter, dtype["default"])
    return pipe.to(device)


def _random(model: ModelSettings, device: str) -> Any:
    """The full-size architecture with random weights, which are enough to measure times and memory."""
    from spectrum_bench.sampling.architectures import random_pipeline

    return random_pipeline(model.name, dtype=model.dtype, device=device, vae_dtype=model.vae_dtype)


LOADERS = {"pretrained": _pretrained, "random": _random}
