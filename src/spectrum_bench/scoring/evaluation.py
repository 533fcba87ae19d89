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

from spectrum_bench.errors import MetricUnavailable, UserError
from spectrum_bench.sampling.records import write_atomically
from spectrum_bench.scoring.experiments import Experiment, check_reference, pairs
from spectrum_bench.scoring.metrics import METRICS, chosen
from spectrum_bench.scoring.metrics.caption import judge_facts
from spectrum_bench.scoring.stats import as_json, derangement, estimate

NAN = float("nan")
ANCHOR_PROMPTS = 32  # enough to tell a broken metric; the anchors cost as much as scoring so many samples twice
PACKAGES = ("numpy", "scipy", "torch", "lpips", "open-clip-torch", "pillow")


def columns(names: list[str]) -> list[str]:
    """The columns of metrics.csv: scores, their details, the reference's own scores."""
    metrics = [METRICS[name] for name in names]
    details, own = [d for m in metrics for d in m.details], [m.own for m in metrics if m.own]
    return ["id", "prompt_index", "seed", *names, *details, *own, "identical"]


def load_scorers(config: dict, names: list[str]) -> tuple[dict[str, Callable], dict[str, str]]:
    """(metric -> scorer, metric -> why it cannot be computed)."""
    scorers, missing = {}, {}
    if (config.get("model") or {}).get("init") == "random":
        return {}, {name: f"{name}: random weights show nothing" for name in names}
    for name in names:
        try:
            scorers[name] = METRICS[name].scorer(config)
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return scorers, missing


def evaluate(experiments: list[Experiment], reference: Experiment, wanted: str | None = None) -> Iterator[dict]:
    """Write metrics.csv and summary.json into each experiment's directory and yield its summary.

    Args:
        wanted: names of metrics, comma between them; None: those that the experiment's model names.

    Raises:
        UserError: the reference cannot judge an experiment, a picture cannot be scored, or a sanity anchor
            fails; nothing is written for that experiment then.
    """
    rulers, own = {}, {}  # loading metrics, the anchors and the reference's own scores are done once
    for experiment in experiments:
        check_reference(experiment, reference)
        names = chosen(experiment.config, wanted)
        ruler = (experiment.model.get("judge"), *names)
        if ruler not in rulers:
            scorers, missing = load_scorers(experiment.config, names)
            rulers[ruler] = scorers, missing, sanity(reference, scorers)
        scorers, missing, anchors = rulers[ruler]
        rows, failed = score_pairs(experiment, reference, scorers, own)
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
            "metrics": summarise(rows, names, missing | failed),
            "latents": latent_errors(experiment, reference),
            "anchors": anchors,
            "judge": judge_facts(experiment.config),
            "versions": _versions(),
        }
        write_atomically(experiment.folder / "metrics.csv", _csv(rows, columns(names)).encode())
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(experiment.folder / "summary.json", f"{text}\n".encode())
        yield summary


def score_pairs(experiment: Experiment, reference: Experiment, scorers: dict, own: dict) -> tuple[list[dict], dict]:
    """(a row of scores for each sample that has a reference, batch metric -> why it failed).

    Args:
        own: (reference's sample, metric) -> its own scores, filled as they are computed.
    """
    rows, failed, found = [], {}, pairs(experiment, reference)
    single = _only(scorers, "single")
    for mine, theirs in tqdm(found, desc=f"scoring {experiment.name}", unit="sample", disable=None, leave=False):
        sample, target = experiment.picture(mine), reference.picture(theirs)
        row = {"id": mine.id, "prompt_index": mine.prompt_index, "seed": mine.seed, "prompt": mine.prompt}
        row |= score(scorers, sample, target, mine.prompt, experiment.folder / mine.sample)
        for name, scorer in single.items():
            if (theirs.sample, name) not in own:
                where = reference.folder / theirs.sample
                own[theirs.sample, name] = score({name: scorer}, target, target, mine.prompt, where)
            row[METRICS[name].own] = own[theirs.sample, name][name]
        rows.append(row | {"identical": int(np.array_equal(sample, target))})
    for name, scorer in _only(scorers, "batch").items():
        try:
            each = scorer([(experiment.folder / mine.sample, mine.prompt) for mine, _ in found])
            theirs = scorer([(reference.folder / target.sample, target.prompt) for _, target in found])
        except MetricUnavailable as reason:
            failed[name] = str(reason)
            continue
        for row, scores, target in zip(rows, each, theirs, strict=True):
            row |= scores | {METRICS[name].own: target[name]}
    return rows, failed


def score(scorers: dict, sample: np.ndarray, reference: np.ndarray, prompt: str, where) -> dict[str, float]:
    """One sample by every metric that takes one at a time."""
    out = {}
    for name, scorer in scorers.items():
        try:
            if METRICS[name].kind == "paired":
                out[name] = by_frame(scorer, sample, reference)
            elif METRICS[name].kind == "single":
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


def latent_errors(experiment: Experiment, reference: Experiment) -> dict | None:
    """RMSE of the latents against the reference's after each step, mean over the prompts whose latents both kept (the
    Spectrum paper's Tables 5 and 8). None if there are none, or the steps differ."""
    each, prompts = [], set()
    for mine, theirs in pairs(experiment, reference):
        a, b = experiment.latents(mine), reference.latents(theirs)
        if a is not None and b is not None and a.shape == b.shape:
            difference = (a.astype(np.float64) - b).reshape(len(a), -1)
            each.append(np.sqrt((difference**2).mean(1)))
            prompts.add(mine.prompt_index)
    return {"prompts": len(prompts), "rmse": [float(v) for v in np.mean(each, 0)]} if each else None


def summarise(rows: list[dict], names: list[str], missing: dict[str, str]) -> dict:
    """Metric -> mean, 95 % interval over prompts and n, or why there is none."""
    prompts = [row["prompt"] for row in rows]

    def column(name):
        return [row.get(name, NAN) for row in rows]

    out = {}
    for name in names:
        metric = METRICS[name]
        if name in missing:
            out[name] = {"unavailable": missing[name]}
            continue
        out[name] = as_json(estimate(column(name), prompts)) | {
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
        }
        if out[name]["n"] == 0:
            out[name] = {"unavailable": f"{name}: no sample could be scored"}
            continue
        if metric.details:
            out[name]["details"] = {d: as_json(estimate(column(d), prompts)) for d in metric.details}
        if metric.own:
            out[name]["reference"] = as_json(estimate(column(metric.own), prompts))
            differences = [a - b for a, b in zip(column(name), column(metric.own), strict=True)]
            out[name]["difference"] = as_json(estimate(differences, prompts))
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

    itself = [scored(scorers, i, i) for i in range(len(records))]
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
    found = {name: np.array([row[name] for row in shuffled]) for name in shuffled[0] if name in scorers}
    out["shuffled"] = {name: float(np.nanmean(c)) for name, c in found.items() if not np.isnan(c).all()}
    for name, value in out["shuffled"].items():
        bound = METRICS[name].unrelated
        if bound is None:  # then worse than with their own prompts
            bound = float(np.nanmean([row[name] for row in itself]))
        if not METRICS[name].worse(value, bound):
            raise UserError(
                f"sanity: {name} of different prompts' pictures is {value:.4g}, no worse than "
                f"{bound:.4g}: {reference.folder} shows one picture for all, or the metric is broken"
            )
    return out


def _only(scorers: dict, kind: str) -> dict:
    return {name: scorer for name, scorer in scorers.items() if METRICS[name].kind == kind}


def _csv(rows: list[dict], columns: list[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(name, NAN) for name in columns)
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
