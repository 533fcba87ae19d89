"""What people prefer, as CLIP ViT-H/14 has learnt it from their choices: PickScore and HPSv2.1."""

from typing import TYPE_CHECKING, Any

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling.catalogue import HubEntry
from spectrum_bench.scoring.metrics import clip
from spectrum_bench.scoring.metrics.contracts import ModelFacts, SingleBatchScorer
from spectrum_bench.scoring.metrics.hub import fetched

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

# Of neither a checksum is known here: download.py --dry-run prints the commit and the checksum to be written here.
WEIGHTS = {
    "pickscore": tuple(HubEntry("yuvalkirstain/PickScore_v1", file) for file in ("model.safetensors", "config.json")),
    # There is no safetensors file of it; PyTorch reads it with weights_only=True, which runs no code of a file.
    "hpsv2": (HubEntry("xswu/HPSv2", "HPS_v2.1_compressed.pt"),),
}


def make_pickscore(model: ModelFacts) -> SingleBatchScorer:
    """PickScore (Kirstain et al. 2023, arXiv:2305.01569): the cosine times the model's own scale, as its model card has
    it."""
    return load_pickscore(fetched("pickscore", WEIGHTS["pickscore"])[0].parent)


def load_pickscore(folder: "Path") -> SingleBatchScorer:
    """The scorer with the CLIP of transformers in `folder`. Prompts go through open_clip's tokenizer, which has the
    same vocabulary and pads with other tokens: those stand behind the end of a text and do not reach its embedding.

    Raises:
        MetricUnavailable: the weights do not fit their configuration.
    """
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN as MEAN
    from open_clip.constants import OPENAI_DATASET_STD as STD
    from open_clip.transform import image_transform
    from torch.nn.functional import normalize
    from transformers import CLIPModel

    from spectrum_bench.scoring.metrics.batches import device

    network: Any = CLIPModel
    model, loaded = network.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in loaded[kind]]
    if wrong := [key for key in wrong if "position_ids" not in str(key)]:
        raise MetricUnavailable("pickscore", f"{folder} does not fit its config.json ({wrong[0]})", "download it again")
    model = model.eval().to(device())
    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    transform: Any = image_transform(model.config.vision_config.image_size, is_train=False, mean=MEAN, std=STD)
    return clip.cosines(
        "pickscore",
        transform,
        lambda pictures: normalize(model.get_image_features(pictures).pooler_output, dim=-1),
        lambda prompts: normalize(model.get_text_features(tokenizer(prompts).to(device())).pooler_output, dim=-1),
        scale=float(model.logit_scale.exp()),
    )


def make_hpsv2(model: ModelFacts) -> SingleBatchScorer:
    """HPSv2.1 (Wu et al. 2023, arXiv:2306.09341): 100 cos."""
    return load_hpsv2("ViT-H-14", fetched("hpsv2", WEIGHTS["hpsv2"])[0])


def load_hpsv2(architecture: str, path: "Path") -> SingleBatchScorer:
    """The scorer with the weights at `path`.

    Raises:
        MetricUnavailable: they do not fit the architecture.
    """
    import open_clip

    side = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    return clip.load("hpsv2", architecture, path, lambda picture: whole(picture, side))


def whole(picture: Any, side: int) -> "Tensor":
    """(3, side, side): the whole picture with a black margin, as HPSv2 reads it (tgxs002/HPSv2@708ffb3,
    hpsv2/src/open_clip/transform.py), where CLIP cuts out the middle. Its longer side becomes `side`, by a bicubic
    filter on floats with today's antialiasing; the margin is black before colours are normalized."""
    from open_clip.constants import OPENAI_DATASET_MEAN as MEAN
    from open_clip.constants import OPENAI_DATASET_STD as STD
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as to

    tensor = to.to_dtype(to.pil_to_tensor(picture), scale=True)
    height, width = tensor.shape[1:]
    scale = side / max(height, width)
    if scale != 1:
        size = [round(height * scale), round(width * scale)]
        tensor = to.resize(tensor, size, InterpolationMode.BICUBIC, antialias=True)
        over, beside = side - size[0], side - size[1]
        tensor = to.pad(tensor, [beside // 2, over // 2, beside - beside // 2, over - over // 2])
    normalized: Tensor = to.normalize(tensor, list(MEAN), list(STD))
    return normalized
