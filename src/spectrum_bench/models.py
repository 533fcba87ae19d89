"""Finding a model's weights and loading its pipeline."""

from pathlib import Path

from .jobs import UserError

ROOT = Path(__file__).resolve().parents[2]


def locate(path: str) -> Path:
    """A path as it is, else below the repository's root, so that entry scripts run from anywhere."""
    given = Path(path).expanduser()
    return given if given.exists() or given.is_absolute() else ROOT / given


def find_weights(repo: str) -> Path:
    """The local folder of a diffusers pipeline: a path, or a Hugging Face repository already downloaded.

    Every safetensors file is checked to be whole, by its header alone.

    Raises:
        UserError: not on this machine, not a pipeline, or damaged. Nothing is ever downloaded here.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    from safetensors import SafetensorError, safe_open

    folder = locate(repo)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(repo, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            raise UserError(
                f"the weights of {repo} are not on this machine: hf download {repo}  (gated: hf auth login first)"
            ) from None
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is no diffusers pipeline (no model_index.json): name its folder in model.repo")
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged ({error}): fetch it again") from None
    return folder


def load_pipeline(repo: str, *, dtype: str, device: str):
    """A diffusers pipeline in eval mode on `device`; safetensors only, no remote code, no network.

    Args:
        repo: a folder in diffusers' format, or a Hugging Face repository id.
        dtype: name of a torch dtype, for all parts.
    """
    import diffusers
    import torch
    import transformers
    from diffusers import DiffusionPipeline

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe = DiffusionPipeline.from_pretrained(
        find_weights(repo), dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
