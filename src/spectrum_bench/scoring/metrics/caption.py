"""Does the picture or clip show what its caption says? For the miniature world, whose captions have a grammar."""

import json
from pathlib import Path

import numpy as np

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.paths import locate
from spectrum_bench.scoring.metrics import METRICS


def judge_folder(config: dict) -> Path | None:
    """The judge that the experiment's model names, relative to the repository; None if it names none."""
    judge = (config.get("model") or {}).get("judge")
    return locate(judge) if judge else None


def judge_facts(config: dict) -> dict | None:
    """What is known of the judge itself: its accuracy on held-out captions, through the model's own VAE if that is
    told beside the model."""
    folder = judge_folder(config)
    places = [locate(config["model"].get("repo", "none")) / "judge.json", folder / "judge.json"] if folder else []
    path = next(filter(Path.is_file, places), None)
    return json.loads(path.read_text(encoding="utf-8")) if path else None


def make_caption(config: dict):
    """The scorer: 1 where things, colours, shapes, sizes, relation, background and motion are as the prompt says."""
    folder = judge_folder(config)
    if folder is None:
        raise MetricUnavailable("caption", "the model names no judge (model.judge)", "only miniature worlds have one")
    for name in ("judge.json", "judge.safetensors"):
        if not (folder / name).is_file():
            raise MetricUnavailable("caption", f"no {config['model']['judge']}/{name}", "python training/train_tiny.py")

    import torch

    from spectrum_bench.miniature import world
    from spectrum_bench.miniature.judge import check, load_judge

    judge, names = load_judge(folder), ("caption", *METRICS["caption"].details)

    def score(sample: np.ndarray, prompt: str) -> dict[str, float]:
        scene = world.parse(prompt)
        if scene is None:
            return dict.fromkeys(names, float("nan"))
        frames = sample if sample.ndim == 4 else sample[None]
        if frames.shape[1:] != (world.SIDE, world.SIDE, 3):
            raise ValueError(f"is {frames.shape[2]}x{frames.shape[1]}: the judge reads {world.SIDE}x{world.SIDE}")
        found = check(scene, *judge.read(torch.from_numpy(frames.astype(np.float32) / 255).permute(0, 3, 1, 2)))
        return {name: found[name] for name in names}

    return score
