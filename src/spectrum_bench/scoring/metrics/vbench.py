"""VBench (Huang et al. 2024, arXiv:2311.17982): its seven quality dimensions and their Quality Score. VBench's own
package computes the dimensions in an isolated environment."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.paths import from_home
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
    """Scores clips of any prompt by all quality dimensions and the Quality Score."""
    isolated.weights("vbench", name)
    folder = from_home(places()["vbench"])

    def score(items: Sequence[tuple[Path, str]]) -> list[Scores]:
        clips = isolated.score("vbench", ("vbench", *DIMENSIONS), [folder, *DIMENSIONS], items)
        return [clip | {"vbench": quality(clip)} for clip in clips]

    return score


def make_vbench_standard(model: ModelFacts) -> FilesScorer:
    """Scores each clip only by the dimensions that VBench measures on its prompt, as published scores do. VBench also
    leaves still clips out of temporal_flickering; this does not."""
    score_all = make_vbench(model, "vbench_standard")

    def score(items: Sequence[tuple[Path, str]]) -> list[Scores]:
        asked = prompts_of_dimensions()
        return standard(score_all(items), [asked.get(prompt, set()) for _, prompt in items])

    return score


def quality(dimensions: Mapping[str, float]) -> float:
    """VBench's Quality Score, a share: the weighted mean of the seven dimensions, each mapped from its range to [0, 1]
    without clipping. nan if one is missing; the official script would count it as 0."""
    return sum(_share(name, dimensions[name]) for name in DIMENSIONS) / _weights()


def _share(name: str, value: float) -> float:
    """A dimension's part in the sum of the Quality Score."""
    low, high, weight = QUALITY[name]
    return weight * (value - low) / (high - low)


def _weights() -> float:
    return sum(weight for _, _, weight in QUALITY.values())


def prompts_of_dimensions() -> dict[str, set[str]]:
    """Prompt -> the quality dimensions that VBench measures on it, from the list in its package."""
    root = isolated.environment("vbench").parents[1]
    (info,) = root.glob("lib/python*/site-packages/vbench/VBench_full_info.json")
    asked: dict[str, set[str]] = {}
    for entry in json.loads(info.read_text(encoding="utf-8")):  # two prompts are in the list twice
        asked.setdefault(entry["prompt_en"], set()).update(set(entry["dimension"]) & set(DIMENSIONS))
    return asked


def standard(clips: Sequence[Scores], asked: Sequence[Collection[str]]) -> list[Scores]:
    """Each clip's scores on the prompts of its dimensions; still clips count too.

    `standard_<dimension>` is the clip's score in a dimension that its prompt belongs to. `vbench_standard` is the
    clip's part in the Quality Score: the mean over clips is the score. For that, dimension d counts N / N_d times on
    each of its N_d clips, where N clips have any dimension. A score is nan if the prompt does not have the dimension,
    or if the clip could not be scored.

    Args:
        clips: for every clip all dimensions, and "vbench", which is nan if the clip could not be scored.
        asked: for every clip the dimensions of its prompt.

    Raises:
        MetricUnavailable: one of the seven dimensions has no clip.
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
