"""The scores of an earlier evaluation, which a later one by other metrics keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.records import Record
from spectrum_bench.scoring import results
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.metrics.contracts import Scores
from spectrum_bench.scoring.summary import Anchors


@dataclass(frozen=True)
class Earlier:
    """The scores of an earlier evaluation.

    Attributes:
        names: of the metrics.
        scores: sample's id -> its scores, by column.
        sets: metric -> the distance of both sets.
        missing: metric -> why it has no score.
    """

    names: list[str]
    scores: dict[str, Scores]
    sets: dict[str, float]
    missing: dict[str, str]
    anchors: Anchors


def earlier(
    experiment: Experiment, reference: Experiment, records: Sequence[Record], names: Sequence[str]
) -> Earlier | None:
    """The earlier scores by metrics other than `names`. None if there are none, or if they belong to other records or
    to another reference."""
    try:
        table, summary = results.load(experiment, reference)
    except UserError:
        return None
    metrics, anchors = summary["metrics"], summary["anchors"]
    others = [name for name in metrics if name in METRICS and name not in names]
    scored = [name for name in results.columns(others)[3:-1] if name in table]
    keys = {record.id: (record.prompt_index, record.seed) for record in records}
    if not others or set(table.index) != set(keys.values()):
        return None
    scores: dict[str, Scores] = {key: dict(table.loc[place, scored]) for key, place in keys.items()}
    missing = {name: metrics[name]["unavailable"] for name in others if "unavailable" in metrics[name]}
    kinds = {name: metrics[name].get("mean") for name in others if METRICS[name].kind == "set"}
    sets = {name: mean for name, mean in kinds.items() if mean is not None}
    of_others: Anchors = {"itself": {}, "shuffled": None}
    of_others["itself"] = {name: score for name, score in anchors["itself"].items() if name in others}
    if anchors["shuffled"] is not None:
        of_others["shuffled"] = {name: score for name, score in anchors["shuffled"].items() if name in others}
    of_others["doubts"] = [doubt for doubt in anchors.get("doubts", []) if doubt.split()[0] in others]
    return Earlier(others, scores, sets, missing, of_others)


def joined(before: Anchors, now: Anchors) -> Anchors:
    """The anchors of two evaluations, each of its own metrics."""
    itself = before["itself"] | now["itself"]
    if before["shuffled"] is None or now["shuffled"] is None:  # there is one prompt only
        return {"itself": itself, "shuffled": None}
    doubts = before.get("doubts", []) + now.get("doubts", [])
    return {"itself": itself, "shuffled": before["shuffled"] | now["shuffled"], "doubts": doubts}
