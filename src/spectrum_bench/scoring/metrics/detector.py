"""GenEval's two networks: Mask2Former, which finds things, and CLIP, which names their colours."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.scoring.metrics import clip
from spectrum_bench.scoring.metrics.batches import device, whole_float32
from spectrum_bench.scoring.metrics.geneval_rules import COLOURS, SURE, THINGS, Found

GREY = "#999999"  # what stands around a thing whose colour is asked for
TEMPLATES = ("a photo of a {colour} {thing}", "a photo of a {colour}-colored {thing}", "a photo of a {colour} object")


def load(folder: Path) -> Callable[[Pixels], dict[str, list[Found]]]:
    """The detector in `folder`, a Mask2Former of transformers for COCO's instances.

    Raises:
        MetricUnavailable: the weights do not fit their configuration, or know other classes.
    """
    network: Any = Mask2FormerForUniversalSegmentation
    model, loaded = network.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in loaded[kind]]
    if wrong := [key for key in wrong if "relative_position_index" not in str(key) and "criterion" not in str(key)]:
        raise MetricUnavailable("geneval", f"{folder} does not fit its config.json ({wrong[0]})", "download it again")
    if model.config.num_labels != len(THINGS):
        raise MetricUnavailable("geneval", f"{folder} knows {model.config.num_labels} classes", "take COCO's instances")
    maker: Any = Mask2FormerImageProcessor
    processor = maker.from_pretrained(folder, local_files_only=True)
    model = model.eval().to(device())

    def detect(picture: Pixels) -> dict[str, list[Found]]:
        with whole_float32():
            inputs = processor(images=Image.fromarray(picture), return_tensors="pt").to(device())
            (result,) = processor.post_process_instance_segmentation(
                model(**inputs), threshold=SURE, target_sizes=[picture.shape[:2]], return_binary_maps=True
            )
        found: dict[str, list[Found]] = {}
        for segment, mask in zip(result["segments_info"], result["segmentation"], strict=False):
            place = np.asarray(mask.cpu(), dtype=bool)
            found.setdefault(THINGS[segment["label_id"]], []).append(Found(segment["score"], box(place), place))
        return found

    return detect


def box(mask: Any) -> tuple[float, float, float, float]:
    """The box around what is true in a mask (H, W): left, top, right, bottom."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def load_colours(architecture: str, path: Path) -> Callable[[Pixels, Sequence[Found], str], list[str]]:
    """The colours of things by zero-shot classification, each cut out before grey, with open_clip's `architecture` and
    the file at `path`."""
    model, transform, tokenizer = clip.network("geneval", architecture, path)
    classes: dict[str, torch.Tensor] = {}

    def of_class(thing: str) -> torch.Tensor:  # (10, D)
        if thing not in classes:
            texts = [line.format(colour=colour, thing=thing) for colour in COLOURS for line in TEMPLATES]
            embedded = model.encode_text(tokenizer(texts).to(device()), normalize=True)
            means = embedded.view(len(COLOURS), len(TEMPLATES), -1).mean(1)
            classes[thing] = torch.nn.functional.normalize(means, dim=-1)
        return classes[thing]

    def colours(picture: Pixels, things: Sequence[Found], thing: str) -> list[str]:
        image = Image.fromarray(picture)
        grey = Image.new("RGB", image.size, GREY)
        alone = [
            Image.composite(image, grey, Image.fromarray(each.mask)) if each.mask is not None else image
            for each in things
        ]
        crops = [transform(whole.crop(each.box)) for whole, each in zip(alone, things, strict=True)]
        with whole_float32():
            seen = model.encode_image(torch.stack(crops).to(device()), normalize=True)
            best = (seen @ of_class(thing).T).argmax(1).tolist()
        return [COLOURS[i] for i in best]

    return colours
