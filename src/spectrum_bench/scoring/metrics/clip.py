"""CLIP score: does a picture show what its prompt says? 100 cos of the two embeddings (Hessel et al. 2021, without its
rescaling), by open_clip."""

from pathlib import Path

import numpy as np

from spectrum_bench.errors import MetricUnavailable

FILE = "open_clip_model.safetensors"


def make_clip(config: dict):
    """ViT-L/14 of OpenAI. Its activation is QuickGELU; open_clip's plain "ViT-L-14" silently takes another."""
    return _make("clip", "ViT-L-14-quickgelu", "timm/vit_large_patch14_clip_224.openai")


def make_clip_g(config: dict):
    """ViT-g/14, trained on LAION-2B."""
    return _make("clip_g", "ViT-g-14", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K")


def _make(metric: str, architecture: str, repo: str):
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, FILE)  # looked up, never fetched
    if not isinstance(path, str):
        raise MetricUnavailable(metric, f"no weights of {repo} in the Hugging Face cache", f"hf download {repo} {FILE}")
    return load_clip(metric, architecture, Path(path))


def load_clip(metric: str, architecture: str, path: Path):
    """The scorer with open_clip's `architecture` and the safetensors file at `path`; of a clip the mean over frames.

    Raises:
        MetricUnavailable: the file is not of that architecture.
    """
    import open_clip
    import torch
    from PIL import Image

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=str(path), device=device)
    except (RuntimeError, AssertionError, KeyError) as error:  # how open_clip and its strict loading complain
        reason = str(error).split("\n")[0]
        raise MetricUnavailable(metric, f"{path} does not fit {architecture} ({reason})", "download it again") from None
    model.eval()
    tokenizer = open_clip.get_tokenizer(architecture)

    @torch.inference_mode()
    def score(sample: np.ndarray, prompt: str) -> dict[str, float]:
        frames = sample if sample.ndim == 4 else sample[None]
        pictures = torch.stack([transform(Image.fromarray(frame)) for frame in frames]).to(device)
        seen = model.encode_image(pictures, normalize=True).double()
        said = model.encode_text(tokenizer([prompt]).to(device), normalize=True).double()
        return {metric: float(100 * (seen @ said.T).mean())}

    return score
