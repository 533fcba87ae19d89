"""DINO similarity: the cosine of a sample and its reference in DINOv2 (Oquab et al. 2023, arXiv:2304.07193)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling.catalogue import HubEntry
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.scoring.metrics.contracts import ModelFacts, PairedBatchScorer
from spectrum_bench.scoring.metrics.hub import fetched

# No checksum is known here: download.py metrics=dino --dry-run prints the commit and the checksum to be written here.
WEIGHTS = {"dino": tuple(HubEntry("facebook/dinov2-base", file) for file in ("model.safetensors", "config.json"))}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
RESIZED, CROP = 256, 224  # pixels of the shorter side, then of the square in the middle
AT_ONCE = 32  # pictures


def make_dino(model: ModelFacts) -> PairedBatchScorer:
    """DINOv2's ViT-B/14."""
    return load(fetched("dino", WEIGHTS["dino"])[0].parent)


def load(folder: Path) -> PairedBatchScorer:
    """The scorer with the DINOv2 of transformers in `folder`: the cosine of the class tokens behind the last norm.

    Raises:
        MetricUnavailable: the weights do not fit their configuration.
    """
    import torch
    from PIL import Image
    from torch import Tensor
    from torch.nn.functional import cosine_similarity
    from torchvision import transforms
    from transformers import Dinov2Model

    from spectrum_bench.scoring.metrics.batches import device, whole_float32

    network: Any = Dinov2Model
    model, loaded = network.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if wrong := [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in loaded[kind]]:
        raise MetricUnavailable("dino", f"{folder} does not fit its config.json ({wrong[0]})", "download it again")
    model = model.eval().to(device())
    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.Resize(RESIZED, bicubic),
            transforms.CenterCrop(CROP),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def see(pictures: Sequence[Pixels]) -> Tensor:  # (B, D)
        tensor = torch.stack([transform(Image.fromarray(picture)) for picture in pictures]).to(device())
        features: Tensor = model(tensor).pooler_output.double()
        return features

    def score(samples: Sequence[Pixels], references: Sequence[Pixels]) -> list[float]:
        scores: list[float] = []
        with whole_float32():
            for i in range(0, len(samples), AT_ONCE):
                a, b = (see(pictures[i : i + AT_ONCE]) for pictures in (samples, references))
                scores += cosine_similarity(a, b, dim=-1).tolist()
        return scores

    return score
