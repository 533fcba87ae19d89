"""CLIP score: how well a picture fits its prompt. 100 cos of the two embeddings (Hessel et al. 2021, without the
rescaling), by open_clip."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling.catalogue import HubEntry
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.scoring.metrics.contracts import ModelFacts, Scores, SingleBatchScorer
from spectrum_bench.scoring.metrics.hub import fetched

if TYPE_CHECKING:
    from torch import Tensor

FILE = "open_clip_model.safetensors"
WEIGHTS = {
    # OpenAI's ViT-L/14, which open_clip 3.3.0 loads for the tag openai. Several projects have pinned its checksum.
    "clip": (
        HubEntry(
            "timm/vit_large_patch14_clip_224.openai",
            FILE,
            revision="18d0535469bb561bf468d76c1d73aa35156c922b",
            sha256="9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
        ),
    ),
    # The model that cache-dit and others report. Others have pinned its pickle; of this file download.py metrics=clip_g
    # --dry-run prints the commit and the checksum to be written here.
    "clip_g": (HubEntry("laion/CLIP-ViT-g-14-laion2B-s12B-b42K", FILE),),
}
AT_ONCE = 32  # pictures


def make_clip(model: ModelFacts) -> SingleBatchScorer:
    """OpenAI's ViT-L/14. Its activation is QuickGELU; open_clip's plain "ViT-L-14" silently uses another one."""
    return load("clip", "ViT-L-14-quickgelu", weights("clip"))


def make_clip_g(model: ModelFacts) -> SingleBatchScorer:
    """ViT-g/14, trained on LAION-2B."""
    return load("clip_g", "ViT-g-14", weights("clip_g"))


def weights(metric: str) -> Path:
    """The model's file in the Hugging Face cache.

    Raises:
        MetricUnavailable: the file is missing or damaged.
    """
    return fetched(metric, WEIGHTS[metric])[0]


def load(
    metric: str, architecture: str, path: Path, transform: "Callable[[Any], Tensor] | None" = None
) -> SingleBatchScorer:
    """The scorer with open_clip's `architecture` and the file at `path`. A clip's score is the mean over frames.

    Args:
        transform: a picture of PIL -> (3, H, W) as the model reads it; None: open_clip's own.

    Raises:
        MetricUnavailable: the file does not fit the architecture.
    """
    from spectrum_bench.scoring.metrics.batches import device

    model, own, tokenizer = network(metric, architecture, path)
    return cosines(
        metric,
        transform or own,
        lambda pictures: model.encode_image(pictures, normalize=True),
        lambda prompts: model.encode_text(tokenizer(prompts).to(device()), normalize=True),
    )


def network(metric: str, architecture: str, path: Path) -> tuple[Any, "Callable[[Any], Tensor]", Any]:
    """open_clip's `architecture` with the file at `path`, what makes a picture of PIL its input, and its tokenizer.

    Raises:
        MetricUnavailable: the file does not fit the architecture.
    """
    import open_clip
    from torch._weights_only_unpickler import UnpicklingError  # type: ignore[attr-defined]

    from spectrum_bench.scoring.metrics.batches import device

    try:
        model, _, own = open_clip.create_model_and_transforms(architecture, pretrained=str(path), device=device())
    except (RuntimeError, AssertionError, KeyError, UnpicklingError) as error:  # of open_clip and of torch
        reason = str(error).split("\n")[0]
        raise MetricUnavailable(metric, f"{path} does not fit {architecture} ({reason})", "download it again") from None
    return model.eval(), own, open_clip.get_tokenizer(architecture)


def cosines(
    metric: str,
    transform: "Callable[[Any], Tensor]",
    see: "Callable[[Tensor], Tensor]",
    read: "Callable[[list[str]], Tensor]",
    scale: float = 100,
) -> SingleBatchScorer:
    """`scale` times the cosine of picture and prompt, of a clip the mean over frames.

    Args:
        transform: a picture of PIL -> (3, H, W).
        see: (B, 3, H, W) on the device -> (B, D) of length 1.
        read: B prompts -> (B, D) of length 1.
    """
    import torch
    from PIL import Image

    from spectrum_bench.scoring.metrics.batches import device, whole_float32

    def embed(frames: list[Pixels]) -> "Tensor":  # (B, D)
        parts = [frames[i : i + AT_ONCE] for i in range(0, len(frames), AT_ONCE)]
        tensors = (torch.stack([transform(Image.fromarray(frame)) for frame in part]) for part in parts)
        return torch.cat([see(tensor.to(device())) for tensor in tensors]).double()

    def score(samples: Sequence[Pixels], prompts: Sequence[str]) -> list[Scores]:
        clips = [list(sample) if sample.ndim == 4 else [sample] for sample in samples]
        with whole_float32():
            pictures = torch.split(embed([frame for clip in clips for frame in clip]), [len(clip) for clip in clips])
            texts = read(list(prompts)).double()
            means = [(picture @ text).mean() for picture, text in zip(pictures, texts, strict=True)]
        return [{metric: float(scale * mean)} for mean in means]

    return score
