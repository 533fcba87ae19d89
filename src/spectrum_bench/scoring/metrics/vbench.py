"""VBench (Huang et al. 2024, arXiv:2311.17982): its seven quality dimensions, by its own package in an environment of
its own, and the Quality Score that is made of them."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling.catalogue import places
from spectrum_bench.scoring.metrics import isolated
from spectrum_bench.scoring.metrics.contracts import FilesScorer, ModelFacts, Scores

# Dimension -> lowest and highest value, weight. Vchitect/VBench@45e79ec, scripts/constant.py.
QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
}
DIMENSIONS = tuple(QUALITY)


def make_vbench(model: ModelFacts, name: str = "vbench") -> FilesScorer:
    """The quality dimensions on clips of any prompt, and their Quality Score."""
    isolated.weights("vbench", name)
    home = Path(places()["vbench"]).expanduser()

    def score(items: Sequence[tuple[Path, str]]) -> list[Scores]:
        clips = isolated.score("vbench", ("vbench", *DIMENSIONS), [home, *DIMENSIONS], items)
        return [clip | {"vbench": quality(clip)} for clip in clips]

    return score


def make_vbench_standard(model: ModelFacts) -> FilesScorer:
    """As published: of each clip only the dimensions that VBench asks of its prompt."""
    score_all = make_vbench(model, "vbench_standard")

    def score(items: Sequence[tuple[Path, str]]) -> list[Scores]:
        asked = prompts_of_dimensions()
        return standard(score_all(items), [asked.get(prompt, set()) for _, prompt in items])

    return score


def quality(dimensions: Mapping[str, float]) -> float:
    """VBench's Quality Score, a share: the weighted mean of the seven dimensions, each mapped from its range to [0, 1],
    not clipped. nan where one is missing: the official script would count it as 0."""
    return sum(_share(name, dimensions[name]) for name in DIMENSIONS) / _weights()


def _share(name: str, value: float) -> float:
    """A dimension's part in the sum of the Quality Score."""
    low, high, weight = QUALITY[name]
    return weight * (value - low) / (high - low)


def _weights() -> float:
    return sum(weight for _, _, weight in QUALITY.values())


def prompts_of_dimensions() -> dict[str, set[str]]:
    """Prompt -> the quality dimensions that VBench measures on it, by the list in its package."""
    root = isolated.environment("vbench").parents[1]
    (info,) = root.glob("lib/python*/site-packages/vbench/VBench_full_info.json")
    asked: dict[str, set[str]] = {}
    for entry in json.loads(info.read_text(encoding="utf-8")):  # two prompts are there twice
        asked.setdefault(entry["prompt_en"], set()).update(set(entry["dimension"]) & set(DIMENSIONS))
    return asked


def standard(clips: Sequence[Scores], asked: Sequence[Collection[str]]) -> list[Scores]:
    """For every clip the dimensions asked of it, as standard_<dimension>, and as `vbench_standard` its share in the
    Quality Score, so that the mean over clips is the score: dimension d counts N / N_d times on each of its N_d clips,
    if N clips are asked for any. nan where nothing is asked, or the clip could not be scored.

    Args:
        clips: for every clip all dimensions, and "vbench", which is nan if it could not be scored.

    Raises:
        MetricUnavailable: one of the seven dimensions is asked of no clip.
    """
    asked = [() if math.isnan(clip["vbench"]) else names for clip, names in zip(clips, asked, strict=True)]
    counts = {name: sum(name in names for names in asked) for name in DIMENSIONS}
    if absent := [name for name, count in counts.items() if not count]:
        reason = f"no clip of VBench's prompts for {', '.join(absent)}"
        raise MetricUnavailable("vbench_standard", reason, "python download.py prompts=vbench, and all of them")
    total = sum(map(bool, asked))
    rows = []
    for clip, names in zip(clips, asked, strict=True):
        share = sum(_share(name, clip[name]) * (total / counts[name]) for name in names) / _weights()
        own = {f"standard_{name}": clip[name] if name in names else math.nan for name in DIMENSIONS}
        rows.append({"vbench_standard": share if names else math.nan} | own)
    return rows
