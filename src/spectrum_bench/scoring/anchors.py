"""A check of the metrics: the reference's samples against themselves, and against other prompts' samples."""

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

from spectrum_bench.errors import UserError
from spectrum_bench.scoring.experiments import Decoded
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.metrics.contracts import Scores
from spectrum_bench.scoring.scorers import Item, Scorers, score, windows
from spectrum_bench.scoring.stats import derangement
from spectrum_bench.scoring.summary import Anchors

PROMPTS = 32  # enough to show that a metric is broken; the anchors cost as much as scoring 64 samples


def sanity(reference: Decoded, scorers: Scorers) -> Anchors:
    """The two anchors: each reference sample against itself (worst value) and against another prompt's (mean).

    Raises:
        UserError: the first is not perfect, or the second is: no score of this metric can be trusted.
    """
    records = reference.experiment.records
    first = {record.prompt: record for record in reversed(records)}  # the first record of each prompt
    chosen = list(first.values())[::-1][:PROMPTS]
    others = derangement([record.prompt for record in chosen])

    def scored(partners: Sequence[int]) -> list[Scores]:
        """The scores of each sample against the picture and the caption of its partner."""
        items = (
            Item(
                reference.experiment.folder / record.sample,
                chosen[j].caption,
                reference.picture(record),
                reference.picture(chosen[j]),
            )
            for record, j in zip(chosen, partners, strict=True)
        )
        return list(chain.from_iterable(score(scorers, window) for window in windows(items)))

    itself = scored(range(len(chosen)))
    worst = {name: _worst(name, itself) for name in scorers.paired}
    if others is None:
        return {"itself": worst, "shuffled": None}
    shuffled = scored(others)
    means = {name: _mean(name, shuffled) for name in (*scorers.paired, *scorers.single)}
    means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    for name, mean in means.items():
        _check_not_perfect(name, mean, itself, reference)
    doubts = [doubt for name, mean in means.items() if (doubt := _doubt(name, mean, itself))]
    return {"itself": worst, "shuffled": means, "doubts": doubts}


def _worst(name: str, scores: Sequence[Scores]) -> float:
    """The value farthest from perfect."""
    perfect = METRICS[name].perfect or 0.0
    value = max((each[name] for each in scores), key=lambda value: abs(value - perfect))
    if abs(value - perfect) > 1e-6:
        raise UserError(f"sanity: {name} of a picture and itself is {value:.4g}, not {perfect:g}: mend the metric")
    return value


def _mean(name: str, scores: Sequence[Scores]) -> float:
    values = np.array([each[name] for each in scores])
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def _check_not_perfect(name: str, mean: float, itself: Sequence[Scores], reference: Decoded) -> None:
    """Refuse pictures of different prompts that are as near to each other as each is to itself."""
    if METRICS[name].kind == "paired" and not METRICS[name].worse(mean, _mean(name, itself)):
        raise UserError(
            f"sanity: {name} of different prompts' pictures is {mean:.4g}, as of a picture and itself: "
            f"{reference.experiment.folder} shows one picture for all, or the metric is broken"
        )


def _doubt(name: str, mean: float, itself: Sequence[Scores]) -> str | None:
    """A sentence if other prompts' pictures are hardly worse. That may be right: prompts of a narrow domain, white
    backgrounds, a metric that does not read prompts."""
    bound = METRICS[name].unrelated
    if bound is None:  # then the mean should be worse than with the own prompts
        bound = _mean(name, itself)
    if METRICS[name].worse(mean, bound):
        return None
    return f"{name} of different prompts' pictures is {mean:.4g}, no worse than {bound:.4g}"
