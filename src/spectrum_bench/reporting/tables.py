"""The table of scored experiments: reading, aligning, naming and ranking its rows. `formats.py` writes it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import notes
from spectrum_bench.reporting.measures import measure_costs, measure_scores
from spectrum_bench.reporting.rows import Costs, Digest, Latents, Role, Row, Table, shared_metrics
from spectrum_bench.scoring.experiments import Experiment, check_reference
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.metrics.contracts import Metric
from spectrum_bench.scoring.results import load
from spectrum_bench.scoring.stats import Estimate, estimate, tied
from spectrum_bench.scoring.summary import MetricSummary, Summary

Key = tuple[int, int]  # prompt index, seed
# What methods are compared at: with those on as small a budget, or a smaller one.
BUDGETS: dict[str, Callable[[Costs], float | None]] = {
    "passes": lambda costs: costs.passes,
    "latency": lambda costs: costs.latency_s,
    "memory": lambda costs: costs.cache_bytes,
}


@dataclass
class Scored:
    """An experiment and its scores: one line for each sample, indexed by prompt index and seed, and one column for each
    metric."""

    experiment: Experiment
    scores: pd.DataFrame
    digest: Digest


def build(experiments: list[Experiment], reference: Experiment, align: str = "passes") -> Table:
    """The table of scored experiments, over the samples that all of them have.

    Args:
        align: the name in BUDGETS by which rows are sorted and compared.

    Raises:
        UserError: an experiment has no current scores against this reference, or the experiments share no sample.
    """
    home = reference.folder.resolve()
    others = list({e.folder.resolve(): e for e in experiments if e.folder.resolve() != home}.values())
    if not others:
        raise UserError(f"nothing to compare: name experiment directories other than the reference {reference.folder}")
    scored = [read_scores(experiment, reference) for experiment in others]
    leave_out_uneven(scored)
    keys = sorted(set.intersection(*(set(each.scores.index) for each in scored)))
    if not keys:
        raise UserError("the experiments have no sample in common: make them with the same prompt_file and seed")
    rows = [make_row(each, role(each.experiment, reference), keys) for each in scored]
    first = make_reference(reference, rows[0], keys)
    for row in (first, *rows):
        row.costs = measure_costs(row, first)
        row.results, row.missing = measure_scores(row)
    mark_best(rows, align)
    give_names(rows)
    rows.sort(key=lambda row: _place(row, align))
    dropped = {e.experiment.name: len(e.scores) - len(keys) for e in scored if len(e.scores) > len(keys)}
    return Table([first, *rows], notes.footnotes([first, *rows], dropped, align))


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_scores(experiment: Experiment, reference: Experiment) -> Scored:
    """The scores that evaluate.py wrote into an experiment's directory.

    Raises:
        UserError: the scores are missing or damaged, or the experiment or its reference has changed since.
    """
    check_reference(experiment, reference)
    scores, summary = load(experiment, reference)
    return Scored(experiment, scores, make_digest(summary))


def make_digest(summary: Summary) -> Digest:
    """The part of summary.json that reports use."""
    metrics, latents, anchors = summary["metrics"], summary.get("latents"), summary["anchors"]
    judge = {kind: facts["caption"] for kind, facts in (summary.get("judge") or {}).items() if _has_caption(facts)}
    return Digest(
        metrics=tuple(name for name in METRICS if name in metrics),
        unavailable={name: facts["unavailable"] for name, facts in metrics.items() if "unavailable" in facts},
        sets=_sets(metrics),
        latents=Latents(latents["rmse"], latents["prompts"]) if latents else None,
        itself=anchors["itself"],
        shuffled=anchors["shuffled"] or {},
        doubts=anchors.get("doubts", []),
        judge={kind.replace("_", " "): share for kind, share in judge.items()},
    )


def _sets(metrics: Mapping[str, MetricSummary]) -> dict[str, Estimate]:
    """The number of each metric of sets that has one."""
    sets = {name: facts for name, facts in metrics.items() if name in METRICS and METRICS[name].kind == "set"}
    return {
        name: Estimate(mean, n=facts["n"]) for name, facts in sets.items() if (mean := facts.get("mean")) is not None
    }


def _has_caption(facts: object) -> bool:
    return isinstance(facts, dict) and "caption" in facts


def leave_out_uneven(scored: Sequence[Scored]) -> None:
    """Leave out a pooled metric if rows lack different samples. A sample's score then depends on the others, so that
    rows cannot be compared."""
    for metric in METRICS.values():
        if metric.pooled and len({_samples_with(each.scores, metric) for each in scored}) > 1:
            for each in scored:
                each.scores = each.scores.assign(**{metric.name: math.nan, metric.own or metric.name: math.nan})
                unavailable = {**each.digest.unavailable, metric.name: notes.uneven(metric.name)}
                each.digest = replace(each.digest, unavailable=unavailable)


def _samples_with(scores: pd.DataFrame, metric: Metric) -> frozenset[Key]:
    return frozenset(scores.index[scores[metric.name].notna()]) if metric.name in scores else frozenset()


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def role(experiment: Experiment, reference: Experiment) -> Role:
    """A repetition of the reference's own algorithm is a noise floor: it shows how much two equal runs differ. A run
    that computes every step through a site shows the cost of the harness itself."""
    models = {r.model for each in (experiment, reference) for r in each.records}
    if not (experiment.is_full and experiment.steps == reference.steps) or len(models) > 1:
        return "method"
    if {r.algo for r in experiment.records} == {r.algo for r in reference.records}:
        return "noise floor"
    return "harness" if {r.schedule for r in experiment.records} == {"full"} else "method"


def make_row(scored: Scored, role: Role, keys: list[Key]) -> Row:
    """The row of an experiment over the samples `keys`."""
    metrics = [METRICS[name] for name in scored.digest.metrics]
    columns = [*(m.name for m in metrics), *(m.own for m in metrics if m.own), "identical"]
    scores = scored.scores.reindex(columns=columns).loc[keys]
    records = [scored.experiment.by_key[key] for key in keys]
    return Row(scored.experiment, role, records, {name: scores[name].tolist() for name in columns}, scored.digest)


def make_reference(reference: Experiment, row: Row, keys: list[Key]) -> Row:
    """The reference's row. Any other row holds the reference's own scores."""
    unscored = [math.nan] * len(keys)
    scores = {name: row.scores[own] if (own := METRICS[name].own) else unscored for name in row.metrics}
    records = [reference.by_key[key] for key in keys]
    return Row(reference, "reference", records, scores, row.digest, name="reference")


NAME_PARTS: tuple[Callable[[Row], str], ...] = (
    lambda row: row.site,
    lambda row: row.forecaster,
    lambda row: row.schedule,
    lambda row: row.experiment.name,
)


def give_names(rows: list[Row]) -> None:
    """Name each method by its algorithm, and by the arguments that distinguish it from others of that name."""
    for row in rows:
        row.name = row.role if row.role in ("noise floor", "harness") else row.algo
    for part in NAME_PARTS:
        namesakes: dict[str, list[Row]] = {}
        for row in rows:
            namesakes.setdefault(row.name, []).append(row)
        for group in namesakes.values():
            words = [re.findall(r"[^(),\s]+", part(row)) for row in group]  # name(a=1, b=2) -> name a=1 b=2
            if len({own[0] for own in words}) == len(words):
                words = [own[:1] for own in words]  # uniform, adaptive_window: no arguments needed
            shared = set.intersection(*map(set, words))
            for row, own in zip(group, words, strict=True):
                row.name = " ".join(
                    [row.name, *(word if "=" in word else word.replace("_", " ") for word in own if word not in shared)]
                )


def _place(row: Row, align: str) -> tuple[bool, float, float]:
    """A sort key: noise floors first, then the largest budget first, then the best PSNR first."""
    return (row.role == "method", -(BUDGETS[align](row.costs) or 0), -(row.mean("psnr") or 0))


# ---------------------------------------------------------------------------------------------------------------------
# The best


def mark_best(rows: list[Row], align: str) -> None:
    """Mark in each metric the methods that no method on as small a budget, or a smaller one, beats by more than chance,
    by bootstrap of the paired differences, and that beat one of those; and the front by their means. Give each its
    difference from the best."""
    for name in shared_metrics(rows):
        methods = [row for row in rows if row.role == "method" and name in row.results]
        if len(methods) < 2 or methods[0].prompt_count < 2:
            continue
        means = {row: row.results[name].estimate.mean for row in methods}
        best = (max if METRICS[name].higher_is_better else min)(means, key=means.__getitem__)
        for row in methods:
            rivals = [r for r in methods if r is not row and _budget(r, align) <= _budget(row, align)]
            row.results[name] = replace(
                row.results[name],
                minus_best=estimate(_differences(row, best, name), row.subjects),
                best=any(better(row, r, name) for r in rivals) and not any(better(r, row, name) for r in rivals),
                front=not any(_dominates(rival, row, name, align) for rival in rivals),
            )


def better(row: Row, rival: Row, name: str) -> bool:
    """Whether the row's score is better than the rival's by more than chance."""
    if not METRICS[name].worse(rival.results[name].estimate.mean, row.results[name].estimate.mean):
        return False
    return not tied(_differences(rival, row, name), row.subjects)


def _dominates(rival: Row, row: Row, name: str, align: str) -> bool:
    """Whether a rival that costs no more has a better mean, or the same for less."""
    own, other = row.results[name].estimate.mean, rival.results[name].estimate.mean
    return METRICS[name].worse(own, other) or (own == other and _budget(rival, align) < _budget(row, align))


def _differences(a: Row, b: Row, name: str) -> list[float]:
    return [float(value) for value in np.subtract(a.scores[name], b.scores[name])]


def _budget(row: Row, align: str) -> float:
    budget = BUDGETS[align](row.costs)
    return math.inf if budget is None else budget  # a budget that was not measured may be any
