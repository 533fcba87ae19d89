"""Score an experiment against its reference: a row for each sample, a summary, and a check of the metrics
themselves."""

import csv
import io
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from rich.console import Console
from rich.progress import track as rich_track

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.catalogue import HubEntry
from spectrum_bench.sampling.records import Record
from spectrum_bench.sampling.settings import SCHEMA
from spectrum_bench.sampling.text import to_cell
from spectrum_bench.scoring import results
from spectrum_bench.scoring.anchors import sanity
from spectrum_bench.scoring.earlier import earlier, joined
from spectrum_bench.scoring.experiments import Decoded, Experiment, check_reference, pairs
from spectrum_bench.scoring.metrics import METRICS, chosen
from spectrum_bench.scoring.metrics.caption import judge_facts
from spectrum_bench.scoring.metrics.contracts import Metric, Scores
from spectrum_bench.scoring.metrics.isolated import header
from spectrum_bench.scoring.scorers import (
    Item,
    Scorers,
    load,
    score,
    score_files,
    score_sets,
    side_by_side,
    windows,
)
from spectrum_bench.scoring.stats import as_json, estimate
from spectrum_bench.scoring.summary import Anchors, LatentErrors, MetricSummary, Summary

NAN = float("nan")
PACKAGES = ("numpy", "scipy", "pillow")  # used by every evaluation, to read pictures and to compute intervals
Pair = tuple[Record, Record]
Track = Callable[[Sequence[Pair], str], Iterable[Pair]]  # shows the progress of a loop under a title


@dataclass
class SampleScores:
    """A row of metrics.csv."""

    record: Record
    identical: bool  # whether every pixel equals the reference's
    scores: Scores  # by column; a missing score could not be computed

    def cell(self, column: str) -> str | int | float:
        """The value of a column of metrics.csv."""
        if column == "id":
            return to_cell(self.record.id)
        if column in ("prompt_index", "seed"):
            value: int = getattr(self.record, column)
            return value
        if column == "identical":
            return int(self.identical)
        score = self.scores.get(column, NAN)
        return "" if math.isnan(score) else score


@dataclass
class Ruler:
    """Loaded and checked metrics, and the reference's own scores, which all experiments share."""

    scorers: Scorers
    anchors: Anchors
    own: dict[tuple[str, str], float] = field(default_factory=dict)  # (reference's sample, metric) -> its own score


def bar(steps: Sequence[Pair], title: str) -> Iterable[Pair]:
    """A progress bar on a terminal, which disappears at the end of the loop. Elsewhere nothing is shown."""
    console = Console(stderr=True)
    return rich_track(steps, title, console=console, transient=True, disable=not console.is_terminal)


def evaluate(
    experiments: Sequence[Experiment], reference: Experiment, wanted: str | None = None, track: Track = bar
) -> Iterator[tuple[Experiment, Summary]]:
    """Write metrics.csv and summary.json into each experiment's directory and yield it with its summary. Earlier scores
    by other metrics stay, if they belong to the same samples and the same reference.

    Args:
        wanted: names of metrics, separated by commas; None: those that the experiment's model lists.
        track: shows the progress of the loop over an experiment's samples.

    Raises:
        UserError: the reference cannot judge an experiment, a picture cannot be scored, or a sanity anchor
            fails; nothing is written for that experiment then.
    """
    decoded = Decoded(reference)
    rulers: dict[tuple[str | None, ...], Ruler] = {}
    unwritten: list[str] = []
    for experiment in experiments:
        check_reference(experiment, reference)
        names = chosen(experiment.facts, wanted)
        key = (experiment.facts.judge, *names)
        if key not in rulers:
            scorers = load(experiment.facts, names)
            rulers[key] = Ruler(scorers, sanity(decoded, scorers))
        rows, sets, failed = score_pairs(experiment, decoded, rulers[key], track)
        ruler, before = rulers[key], earlier(experiment, reference, [row.record for row in rows], names)
        if before is not None:
            names, failed = [name for name in METRICS if name in {*names, *before.names}], failed | before.missing
            ruler = Ruler(ruler.scorers, joined(before.anchors, ruler.anchors), ruler.own)
            sets = before.sets | sets
            for row in rows:
                row.scores = before.scores[row.record.id] | row.scores
        summary = summarise(experiment, reference, names, rows, sets, ruler, failed)
        try:
            summary = results.save(experiment.folder, summary, to_csv(rows, results.columns(names)))
        except OSError as error:
            unwritten.append(f"{error.filename}: {error.strerror}")
            continue
        yield experiment, summary
    if unwritten:
        raise UserError(f"{'; '.join(unwritten)}: make room or change permissions, and give the same command again")


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def score_pairs(
    experiment: Experiment, reference: Decoded, ruler: Ruler, track: Track = bar
) -> tuple[list[SampleScores], dict[str, float], dict[str, str]]:
    """A row for each sample that has a reference, the distances of both sets by metric, and for each metric that failed
    the reason."""
    partners = pairs(experiment, reference.experiment)
    rows: list[SampleScores] = []

    def read(pair: Pair) -> Item:
        sample, target = pair
        path = experiment.folder / sample.sample
        return Item(path, sample.caption, experiment.picture(sample), reference.picture(target))

    for window in windows(side_by_side(read, track(partners, f"scoring {experiment.name}"))):
        records = partners[len(rows) : len(rows) + len(window)]
        scores = score(ruler.scorers, window)
        own_scores = _own_scores(ruler, reference, [target for _, target in records], window)
        for (record, _), item, each, own in zip(records, window, scores, own_scores, strict=True):
            rows.append(SampleScores(record, np.array_equal(item.sample, item.reference), each | own))
    samples = [(experiment.folder / sample.sample, sample.caption) for sample, _ in partners]
    targets = [(reference.experiment.folder / target.sample, target.caption) for _, target in partners]
    more, failed = score_files(ruler.scorers, samples, targets)
    for row, each in zip(rows, more, strict=True):
        row.scores |= each
    sets, without = score_sets(ruler.scorers, samples, targets)
    return rows, sets, failed | without


def _own_scores(ruler: Ruler, reference: Decoded, targets: Sequence[Record], window: Sequence[Item]) -> list[Scores]:
    """The reference's own scores in every single metric, by column. They are computed once for all experiments."""
    for name, scorer in ruler.scorers.single.items():
        new = {
            target.sample: Item(
                reference.experiment.folder / target.sample, item.prompt, item.reference, item.reference
            )
            for target, item in zip(targets, window, strict=True)
            if (target.sample, name) not in ruler.own
        }
        for sample, scores in zip(new, score(Scorers(single={name: scorer}), list(new.values())), strict=True):
            ruler.own[sample, name] = scores[name]
    names = ruler.scorers.single
    return [{str(METRICS[name].own): ruler.own[target.sample, name] for name in names} for target in targets]


def to_csv(rows: Sequence[SampleScores], names: Sequence[str]) -> str:
    """The text of metrics.csv. A score that could not be computed is blank."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([row.cell(name) for name in names] for row in rows)
    return text.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Summary


def summarise(
    experiment: Experiment,
    reference: Experiment,
    names: Sequence[str],
    rows: Sequence[SampleScores],
    sets: dict[str, float],
    ruler: Ruler,
    failed: dict[str, str],
) -> Summary:
    """The content of summary.json.

    Args:
        sets: metric -> the distance of both sets.
        failed: metric -> why it failed, for metrics that were loaded.
    """
    missing, digests = ruler.scorers.missing | failed, experiment.digests
    return {
        "schema": SCHEMA,
        "experiment": experiment.name,
        "records_sha256": digests["records_sha256"],
        "config_sha256": digests["config_sha256"],
        "samples_sha256": digests["samples_sha256"],
        "reference": {"path": str(reference.folder), **reference.digests},
        "samples": len(rows),
        "unpaired": {
            "experiment": len(experiment.records) - len(rows),
            "reference": len(reference.records) - len(rows),
        },
        "seeds": sorted({row.record.seed for row in rows}),
        "identical_pairs": sum(row.identical for row in rows),
        "metrics": {
            name: {"unavailable": missing[name]}
            if name in missing
            else summarise_set(METRICS[name], sets[name], len(rows))
            if name in sets
            else summarise_metric(METRICS[name], rows)
            for name in names
        },
        "latents": latent_errors(experiment, reference),
        "anchors": ruler.anchors,
        "judge": judge_facts(experiment.facts),
        "versions": versions(METRICS[name] for name in names),
    }


def summarise_set(metric: Metric, distance: float, samples: int) -> MetricSummary:
    """The one number of a metric of sets. It has no interval over prompts: a bootstrap repeats samples, which moves the
    sets apart."""
    better = metric.higher_is_better
    return {"mean": distance, "interval": None, "n": samples, "unit": metric.unit, "higher_is_better": better}


def summarise_metric(metric: Metric, rows: Sequence[SampleScores]) -> MetricSummary:
    """A metric's mean over prompts, its details and the reference's own mean, or the reason why there is none."""
    prompts = [row.record.subject for row in rows]

    def column(name: str) -> list[float]:
        return [row.scores.get(name, NAN) for row in rows]

    whole = estimate(column(metric.name), prompts)
    if whole is None:
        return {"unavailable": f"{metric.name}: no sample could be scored"}
    summary: MetricSummary = {
        "mean": whole.mean,
        "interval": as_json(whole)["interval"],
        "n": whole.n,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
    }
    if metric.details:
        summary["details"] = {name: as_json(estimate(column(name), prompts)) for name in metric.details}
    if metric.own:
        own = column(metric.own)
        differences = [a - b for a, b in zip(column(metric.name), own, strict=True)]
        summary["reference"] = as_json(estimate(own, prompts))
        summary["difference"] = as_json(estimate(differences, prompts))
    return summary


def latent_errors(experiment: Experiment, reference: Experiment) -> LatentErrors | None:
    """RMSE of the latents against the reference's after each step, mean over the prompts whose latents both runs kept
    (the Spectrum paper's Tables 5 and 8). None if no prompt has them, or if the steps differ."""
    errors, prompts = [], set()
    for sample, target in pairs(experiment, reference):
        a, b = experiment.latents(sample), reference.latents(target)
        if a is not None and b is not None and a.shape == b.shape:
            difference = (a.astype(np.float64) - b).reshape(len(a), -1)
            errors.append(np.sqrt((difference**2).mean(1)))
            prompts.add(sample.prompt_index)
    return {"prompts": len(prompts), "rmse": [float(v) for v in np.mean(errors, 0)]} if errors else None


def versions(metrics: Iterable[Metric]) -> dict[str, str]:
    """The versions of Python and of the packages of every evaluation and of the metrics; the commits of weights."""
    numbers = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    for metric in metrics:
        pinned = header.read(metric.environment) if metric.environment else None
        for package in metric.packages:
            try:
                number = pinned.version(package) if pinned else version(package)
            except PackageNotFoundError:  # the metric is unavailable because of that
                continue
            if number:
                numbers[package] = number
        if program := os.environ.get(metric.variable):
            numbers[metric.variable] = program
        hub = [entry for entry in metric.weights() if isinstance(entry, HubEntry)]
        numbers |= {entry.repo: commit for entry in hub if (commit := entry.commit)}
    return numbers
