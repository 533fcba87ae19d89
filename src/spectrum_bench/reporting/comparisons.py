"""Which differences between methods are more than chance, and which method is fast enough to keep the quality."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectrum_bench.errors import UserError
from spectrum_bench.reporting.tables import Row, Table
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import by_prompt, estimate, holm, sign_flip

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """A method's score less the baseline's, over the prompts of both."""

    row: Row
    metric: str
    mean: float
    low: float | None  # 95 % interval
    high: float | None
    p: float  # two-sided, by flipping signs
    p_holm: float  # the same, corrected for the number of methods (Holm 1979)
    wins: float  # share of prompts on which the method is better; ties count half
    verdict: str  # "better" | "worse" | "tie" | "within the noise floor"


def compare(table: Table, name: str) -> tuple[Row, list[Difference]]:
    """The row that `name` calls (its name, its experiment's or that one's folder), and the other methods' differences
    from it.

    Raises:
        UserError: no row, or more than one, is called that.
    """
    by_folder = [row for row in table.rows if row.experiment.folder.resolve() == Path(name).resolve()]
    found = by_folder or [row for row in table.rows if name in (row.name, row.experiment.name)]
    if len(found) != 1:
        names = ", ".join(row.experiment.name for row in table.rows)
        raise UserError(f"baseline={name} names {len(found)} rows: choose of {names}")
    baseline, out = found[0], []
    for metric in table.metrics:
        rows = [r for r in table.rows if r.role == "method" and r is not baseline and r.figures[metric] is not None]
        if baseline.figures[metric] is None or not rows:
            continue
        differences = [np.subtract(row.scores[metric], baseline.scores[metric]) for row in rows]
        each = [by_prompt(values, row.prompts) for row, values in zip(rows, differences, strict=True)]
        p = [sign_flip(values) for values in each]
        for row, values, mine, raw, corrected in zip(rows, differences, each, p, holm(p), strict=True):
            found = estimate(values, row.prompts)
            low, high = found["interval"] or (None, None)
            better = mine if METRICS[metric].higher_is_better else -mine
            wins = float((np.sign(better) + 1).mean() / 2)
            if inside_floor(table, metric, row, baseline):
                verdict = "within the noise floor"
            elif corrected >= ALPHA:
                verdict = "tie"
            else:
                verdict = "better" if better.mean() > 0 else "worse"
            out.append(Difference(row, metric, found["mean"], low, high, raw, corrected, wins, verdict))
    return baseline, out


def inside_floor(table: Table, metric: str, a: Row, b: Row) -> bool:
    """Whether the two differ by no more than the reference does from its own repetitions. A paired metric measures the
    distance from the reference: there both must be as near to it as its repetitions are."""
    floors = [r.figures[metric] for r in table.rows if r.role == "noise floor" and r.figures[metric] is not None]
    if not floors:
        return False
    if METRICS[metric].kind == "paired":
        worst = (min if METRICS[metric].higher_is_better else max)(floors)
        return not any(METRICS[metric].worse(r.figures[metric], worst) for r in (a, b) if r.role != "reference")
    reference = table.rows[0].figures[metric]
    widest = max(abs(value - reference) for value in floors)
    return abs(a.figures[metric] - b.figures[metric]) <= widest


def gate(table: Table, margin: float) -> list[str]:
    """By each metric that the reference has a score of its own in, the fastest method that keeps all but `margin` of
    it (MLPerf asks for 99 %, hence 0.01): the lower end of the interval of its difference must reach that. Fewer than
    ten prompts say nothing."""
    notes = []
    if table.rows[0].figures["prompts"] < 10:
        return notes
    for name in table.metrics:
        metric, reference = METRICS[name], table.rows[0].figures[name]
        if not metric.own or reference is None or not metric.higher_is_better or reference <= 0:
            continue
        kept, title = [], metric.label.removesuffix(" %")
        methods = [row for row in table.rows if row.role == "method" and row.figures["speedup"] is not None]
        for row in methods:
            mean, low = (row.figures.get(f"{name}_minus_reference{end}") for end in ("", "_low"))
            if mean is None:
                continue
            if (mean if low is None else low) >= -margin * reference:
                kept.append(row)
        words = f"keeps {100 * (1 - margin):g} % of the reference's {title} with 95 % confidence"
        if kept:
            best = max(kept, key=lambda row: row.figures["speedup"])
            chosen = f"chosen from {len(methods)} rows, uncorrected"
            notes.append(
                f"Fastest that {words} ({chosen}): {best.name} ({best.passes}, {best.figures['speedup']:.2f}×)."
            )
        else:
            notes.append(f"No method {words}; more prompts would narrow the intervals.")
    return notes


def unrounded(differences: list[Difference], baseline: Row) -> str:
    """CSV, one row a method and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "experiment", "baseline", "metric", "difference", "low", "high", "p", "p_holm", "wins"])
    for d in differences:
        numbers = ("" if v is None else v for v in (d.mean, d.low, d.high, d.p, d.p_holm, d.wins))
        writer.writerow([d.row.name, d.row.experiment.name, baseline.experiment.name, d.metric, *numbers])
    return text.getvalue()


def per_prompt(table: Table) -> str:
    """CSV, one row a sample: what every method scored on it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = table.metrics
    writer.writerow(["prompt_index", "seed", "prompt", "method", "experiment", *metrics])
    for row in table.rows:
        for i, record in enumerate(row.records):
            scores = (row.scores[name][i] for name in metrics)
            cells = ("" if np.isnan(score) else score for score in scores)
            writer.writerow([record.prompt_index, record.seed, record.prompt, row.name, row.experiment.name, *cells])
    return text.getvalue()
