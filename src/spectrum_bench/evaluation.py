"""Score an experiment against its reference: one row a sample, a summary, and a check of the ruler itself."""

import csv
import io
import json
import math
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from tqdm import tqdm

from .experiments import Experiment, check_reference, pairs
from .jobs import UserError, write_atomically
from .metrics import METRICS, MetricUnavailable
from .metrics.caption import judge_facts
from .stats import derangement, estimate

NAN = float("nan")
ANCHOR_PROMPTS = 32  # enough to tell a broken metric; the anchors cost as much as scoring so many samples twice
COLUMNS = (
    "id",
    "prompt_index",
    "seed",
    *METRICS,
    *(d for m in METRICS.values() for d in m.details),
    "caption_reference",
    "identical",
)
PACKAGES = ("numpy", "scipy", "torch", "lpips", "pillow")


def load_scorers(config: dict) -> tuple[dict[str, Callable], dict[str, str]]:
    """(metric -> scorer, metric -> why it cannot be computed)."""
    scorers, missing = {}, {}
    if (config.get("model") or {}).get("init") == "random":
        return {}, {name: f"{name}: random weights show nothing" for name in METRICS}
    for name, metric in METRICS.items():
        try:
            scorers[name] = metric.scorer(config)
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return scorers, missing


def evaluate(experiments: list[Experiment], reference: Experiment) -> Iterator[dict]:
    """Write metrics.csv and summary.json into each experiment's directory and yield its summary.

    Raises:
        UserError: the reference cannot judge an experiment, a picture cannot be scored, or a sanity anchor
            fails; nothing is written for that experiment then.
    """
    rulers = {}  # by judge: loading LPIPS and scoring the anchors is done once
    for experiment in experiments:
        check_reference(experiment, reference)
        judge = experiment.model.get("judge")
        if judge not in rulers:
            scorers, missing = load_scorers(experiment.config)
            rulers[judge] = scorers, missing, sanity(reference, scorers)
        scorers, missing, anchors = rulers[judge]
        rows = score_pairs(experiment, reference, scorers)
        summary = {
            "experiment": experiment.name,
            "records_sha256": experiment.fingerprint,
            "reference": {"path": str(reference.folder), "records_sha256": reference.fingerprint},
            "samples": len(rows),
            "unpaired": {
                "experiment": len(experiment.records) - len(rows),
                "reference": len(reference.records) - len(rows),
            },
            "seeds": sorted({row["seed"] for row in rows}),
            "identical_pairs": sum(row["identical"] for row in rows),
            "metrics": summarise(rows, missing),
            "anchors": anchors,
            "judge": judge_facts(experiment.config),
            "versions": _versions(),
        }
        summary["reference"]["caption"] = summary["metrics"]["caption"].pop("reference", None)
        write_atomically(experiment.folder / "metrics.csv", _csv(rows).encode())
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(experiment.folder / "summary.json", f"{text}\n".encode())
        yield summary


def score_pairs(experiment: Experiment, reference: Experiment, scorers: dict) -> list[dict]:
    """A row of scores for each sample that has a reference."""
    rows = []
    found = pairs(experiment, reference)
    for mine, theirs in tqdm(found, desc=f"scoring {experiment.name}", unit="sample", disable=None, leave=False):
        sample, target = experiment.picture(mine), reference.picture(theirs)
        row = {"id": mine.id, "prompt_index": mine.prompt_index, "seed": mine.seed, "prompt": mine.prompt}
        row |= score(scorers, sample, target, mine.prompt, experiment.folder / mine.sample)
        own = score(_only(scorers, "single"), target, target, mine.prompt, reference.folder / theirs.sample)
        same = int(np.array_equal(sample, target))
        rows.append(row | {"caption_reference": own.get("caption", NAN), "identical": same})
    return rows


def score(scorers: dict, sample: np.ndarray, reference: np.ndarray, prompt: str, where) -> dict[str, float]:
    """Every metric of one sample."""
    out = {}
    for name, scorer in scorers.items():
        try:
            if METRICS[name].kind == "paired":
                out[name] = by_frame(scorer, sample, reference)
            else:
                out |= scorer(sample, prompt)
        except ValueError as error:
            raise UserError(f"{where} {error}") from None
    return out


def by_frame(scorer: Callable, sample: np.ndarray, reference: np.ndarray) -> float:
    """A paired score of two pictures; of two clips the mean over their frames.

    Raises:
        ValueError: another number of frames.
    """
    if sample.ndim < 4 and reference.ndim < 4:
        return scorer(sample, reference)
    if sample.shape[:-3] != reference.shape[:-3]:
        counts = [x.shape[0] if x.ndim == 4 else 1 for x in (sample, reference)]
        raise ValueError(f"has {counts[0]} frames and its reference {counts[1]}: make both with the same num_frames")
    return float(np.mean([scorer(a, b) for a, b in zip(sample, reference, strict=True)]))


def summarise(rows: list[dict], missing: dict[str, str]) -> dict:
    """Metric -> mean, 95 % interval over prompts and n, or why there is none."""
    prompts = [row["prompt"] for row in rows]

    def column(name):
        return [row.get(name, NAN) for row in rows]

    out = {}
    for name, metric in METRICS.items():
        if name in missing:
            out[name] = {"unavailable": missing[name]}
            continue
        out[name] = estimate(column(name), prompts) | {
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
        }
        if out[name]["n"] == 0:
            out[name] = {"unavailable": f"{name}: no prompt is worded by the world's grammar"}
        elif metric.details:
            out[name]["details"] = {d: estimate(column(d), prompts) for d in metric.details}
            out[name]["reference"] = estimate(column("caption_reference"), prompts)
            differences = [a - b for a, b in zip(column(name), column("caption_reference"), strict=True)]
            out[name]["difference"] = estimate(differences, prompts)
    return out


def sanity(reference: Experiment, scorers: dict) -> dict:
    """The two anchors: each reference against itself (worst value) and against another prompt's (mean).

    Raises:
        UserError: the first is not perfect or the second not terrible, so no score made here can be trusted.
    """
    records = list({r.prompt: r for r in reversed(reference.records)}.values())[::-1][:ANCHOR_PROMPTS]
    others = derangement([r.prompt for r in records])
    paired = _only(scorers, "paired")

    def scored(scorers, i, j):  # reference i as the sample; picture and prompt of j as the target
        sample, target = reference.picture(records[i]), reference.picture(records[j])
        return score(scorers, sample, target, records[j].prompt, reference.folder / records[i].sample)

    itself = [scored(paired, i, i) for i in range(len(records))]
    out = {
        "itself": {
            name: max((r[name] for r in itself), key=lambda v: abs(v - METRICS[name].perfect)) for name in paired
        }
    }
    for name, value in out["itself"].items():
        perfect = METRICS[name].perfect
        if abs(value - perfect) > 1e-6:
            raise UserError(f"sanity: {name} of a picture and itself is {value:.4g}, not {perfect:g}: mend the metric")
    if others is None:
        return out | {"shuffled": None}
    shuffled = [scored(scorers, i, j) for i, j in enumerate(others)]
    columns = {name: np.array([row[name] for row in shuffled]) for name in scorers}
    out["shuffled"] = {name: float(np.nanmean(c)) for name, c in columns.items() if not np.isnan(c).all()}
    for name, value in out["shuffled"].items():
        if not METRICS[name].worse(value, METRICS[name].unrelated):
            raise UserError(
                f"sanity: {name} of different prompts' pictures is {value:.4g}, no worse than "
                f"{METRICS[name].unrelated:g}: {reference.folder} shows one picture for all, or the metric is broken"
            )
    return out


def _only(scorers: dict, kind: str) -> dict:
    return {name: scorer for name, scorer in scorers.items() if METRICS[name].kind == kind}


def _csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        cells = (row.get(name, NAN) for name in COLUMNS)
        writer.writerow("" if isinstance(c, float) and math.isnan(c) else c for c in cells)
    return text.getvalue()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # only an optional metric needs it
    return found
