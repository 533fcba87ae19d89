"""Whether a picture or clip shows what its caption says, in the miniature world, whose captions have a grammar."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.paths import locate
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.metrics.contracts import ModelFacts, Scores, SingleScorer


def judge_folder(model: ModelFacts) -> Path | None:
    """The folder of the judge that the model names; None if it names none."""
    return locate(model.judge) if model.judge else None


def judge_facts(model: ModelFacts) -> dict[str, Any] | None:
    """judge.json: the judge's accuracy on held-out captions. A file beside the model holds the accuracy through the
    model's own VAE, and goes before the file beside the judge."""
    folder = judge_folder(model)
    folders = [locate(model.repo or "none"), folder] if folder else []
    path = next((place / "judge.json" for place in folders if (place / "judge.json").is_file()), None)
    return json.loads(path.read_text(encoding="utf-8")) if path else None


def make_caption(model: ModelFacts) -> SingleScorer:
    """The scorer: 1 if things, colours, shapes, sizes, relation, background and motion are as the prompt says, else
    0."""
    folder = judge_folder(model)
    if folder is None:
        raise MetricUnavailable("caption", "the model names no judge (model.judge)", "only miniature worlds have one")
    for name in ("judge.json", "judge.safetensors"):
        if not (folder / name).is_file():
            raise MetricUnavailable("caption", f"no {model.judge}/{name}", "python training/train_tiny.py")

    import torch

    from spectrum_bench.miniature import world
    from spectrum_bench.miniature.judge import check, load_judge

    judge, names = load_judge(folder), ("caption", *METRICS["caption"].details)

    def score(sample: Pixels, prompt: str) -> Scores:
        scene, frames = world.parse(prompt), sample if sample.ndim == 4 else sample[None]
        if scene is None or frames.shape[1:] != (world.SIDE, world.SIDE, 3):
            return dict.fromkeys(names, float("nan"))
        images = torch.from_numpy(frames.astype(np.float32) / 255).permute(0, 3, 1, 2)
        answers = check(scene, *judge.read(images))
        return {name: answers[name] for name in names}

    return score
