"""Which differences between methods are more than chance, and which method is the fastest that keeps the quality."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectrum_bench.errors import UserError
from spectrum_bench.reporting.rows import Comparison, Difference, Row, Table, Verdict
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.metrics.contracts import Metric
from spectrum_bench.scoring.stats import Values, by_prompt, estimate, holm, sign_flip

ALPHA = 0.05
FEWEST_PROMPTS = 10  # with fewer prompts a threshold of acceptance means nothing


def compare(table: Table, name: str) -> Comparison:
    """The other methods' differences from a baseline, in every metric that both were scored by.

    Args:
        name: the baseline's name, or its experiment's name or folder.

    Raises:
        UserError: no row has this name, or several rows have it.
    """
    baseline = find_baseline(table, name)
    differences = [d for metric in table.metrics for d in differences_in(table, metric, baseline)]
    return Comparison(baseline, differences)


def find_baseline(table: Table, name: str) -> Row:
    by_folder = [row for row in table.rows if row.experiment.folder.resolve() == Path(name).resolve()]
    rows = by_folder or [row for row in table.rows if name in (row.name, row.experiment.name)]
    if len(rows) != 1:
        names = ", ".join(row.experiment.name for row in table.rows)
        raise UserError(f"baseline={name} names {len(rows)} rows: choose of {names}")
    return rows[0]


def differences_in(table: Table, metric: str, baseline: Row) -> list[Difference]:
    """Every other method's difference from the baseline in one metric; empty where the baseline has no score."""
    methods = [row for row in table.methods if row is not baseline and metric in row.results]
    if metric not in baseline.results or not methods:
        return []
    values = [np.subtract(row.scores[metric], baseline.scores[metric]) for row in methods]
    estimates = [estimate(each, row.subjects) for row, each in zip(methods, values, strict=True)]
    by_prompts = [by_prompt(each, row.subjects) for row, each in zip(methods, values, strict=True)]
    p = [sign_flip(each) for each in by_prompts]
    differences = []
    for row, mean, each, raw, corrected in zip(methods, estimates, by_prompts, p, holm(p), strict=True):
        if mean is None:  # no sample was scored in both
            continue
        better = each if METRICS[metric].higher_is_better else -each
        wins = float((np.sign(better) + 1).mean() / 2)
        decided = verdict(better, corrected, inside_floor(table, metric, row, baseline))
        differences.append(Difference(row, metric, mean, raw, corrected, wins, decided))
    return differences


def verdict(better: Values, p: float, inside_floor: bool) -> Verdict:
    """The meaning of a difference. `better` is positive on prompts where the method is better than the baseline."""
    if inside_floor:
        return "within the noise floor"
    if p >= ALPHA:
        return "tie"
    return "better" if better.mean() > 0 else "worse"


def inside_floor(table: Table, name: str, a: Row, b: Row) -> bool:
    """Whether two rows differ by no more than the reference differs from its own repetitions.

    A paired metric is a distance from the reference: both rows must be as near to the reference as its repetitions are.
    """
    metric, repetitions = METRICS[name], [row for row in table.rows if row.role == "noise floor"]
    floors = [row.results[name].estimate.mean for row in repetitions if name in row.results]
    if not floors:
        return False
    if metric.kind == "paired":
        worst = (min if metric.higher_is_better else max)(floors)
        compared = [row.results[name].estimate.mean for row in (a, b) if row.role != "reference"]
        return not any(metric.worse(mean, worst) for mean in compared)
    reference = table.reference.results[name].estimate.mean
    widest = max(abs(floor - reference) for floor in floors)
    return abs(a.results[name].estimate.mean - b.results[name].estimate.mean) <= widest


@dataclass(frozen=True)
class Acceptance:
    """The fastest method that keeps all but a margin of the reference's own score in one metric."""

    metric: Metric
    candidates: int  # methods with a speedup
    fastest: Row | None  # None where no method keeps that much


def accept(table: Table, margin: float) -> list[Acceptance]:
    """The fastest method within the threshold of acceptance, for each metric in which the reference has a score of its
    own.

    A method is within the threshold if the lower end of its interval loses at most the share `margin` of that score.
    MLPerf asks for 99 %, a margin of 0.01. With fewer than FEWEST_PROMPTS prompts the list is empty.
    """
    if table.reference.prompt_count < FEWEST_PROMPTS:
        return []
    candidates = {row: row.costs.speedup.mean for row in table.methods if row.costs.speedup}
    acceptances = []
    for metric in map(METRICS.__getitem__, table.metrics):
        reference = table.reference.mean(metric.name)
        if metric.own and metric.higher_is_better and reference is not None and reference > 0:
            accepted = [row for row in candidates if keeps(row, metric.name, margin * reference)]
            fastest = max(accepted, key=candidates.__getitem__, default=None)
            acceptances.append(Acceptance(metric, len(candidates), fastest))
    return acceptances


def keeps(row: Row, metric: str, loss: float) -> bool:
    """Whether the row loses at most `loss` of the reference's score, with 95 % confidence if an interval is known."""
    difference = row.results[metric].minus_reference if metric in row.results else None
    if difference is None:
        return False
    return (difference.mean if difference.low is None else difference.low) >= -loss
