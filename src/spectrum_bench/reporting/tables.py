"""The paper's Table 1 from scored experiments: figures, intervals, ties and footnotes. `formats.py` writes it."""

import csv
import io
import json
import math
import re
from dataclasses import dataclass, field

import numpy as np

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.records import Record, read_failures
from spectrum_bench.scoring.experiments import Experiment, check_reference
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import estimate, ratio_interval, tied

ITSELF = "the reference is what the other rows are measured against"


@dataclass
class Row:
    """One experiment: its records, its scores by metric (a list along the records), and what follows from both."""

    experiment: Experiment
    role: str  # "reference" | "noise floor" | "method"
    records: list[Record]
    scores: dict[str, list[float]]
    summary: dict
    name: str = ""  # short, and with the passes unlike any other row's
    figures: dict = field(default_factory=dict)  # CSV column -> number, unrounded; None: see reasons
    reasons: dict[str, str] = field(default_factory=dict)  # CSV column -> why it is None

    @property
    def metrics(self) -> list[str]:
        """Those that it was scored by, in the order of tables."""
        return [name for name in METRICS if name in self.summary["metrics"]]

    @property
    def latents(self) -> list[float] | None:
        """RMSE of the latents after each step."""
        return (self.summary.get("latents") or {}).get("rmse") if self.role != "reference" else None

    @property
    def prompts(self) -> list[str]:
        return [r.prompt for r in self.records]

    @property
    def passes(self) -> str:
        return f"{round(self.figures['passes'], 1):g}/{self.figures['steps']}"


@dataclass
class Table:
    rows: list[Row]
    notes: list[str]

    @property
    def metrics(self) -> list[str]:
        return shown(self.rows)


def shown(rows: list[Row]) -> list[str]:
    """The metrics that all rows were scored by."""
    return [name for name in METRICS if all(name in row.metrics for row in rows)]


NAN = math.nan
# What methods are compared at: with no more of it than a row has, no other row may be better for that one to be bold.
BUDGETS = {"passes": "passes", "latency": "latency_s", "memory": "cache_bytes"}


def build(experiments: list[Experiment], reference: Experiment, align: str = "passes") -> Table:
    """The table of scored experiments, over the samples that all of them have.

    Args:
        align: of BUDGETS, by which rows are sorted and compared.

    Raises:
        UserError: an experiment was not scored against this reference as both are now, or nothing is in common.
    """
    home = reference.folder.resolve()
    others = list({e.folder.resolve(): e for e in experiments if e.folder.resolve() != home}.values())
    if not others:
        raise UserError(f"nothing to compare: name experiment directories other than the reference {reference.folder}")
    read = [(e, *read_scores(e, reference)) for e in others]
    leave_out_uneven([(scores, summary) for _, scores, summary in read])
    keys = sorted(set.intersection(*(set(scores) for _, scores, _ in read)))
    if not keys:
        raise UserError("the experiments have no sample in common: make them with the same prompt_file and seed")
    rows = [make_row(e, role(e, reference), keys, scores, summary) for e, scores, summary in read]
    own = {m: rows[0].scores.get(METRICS[m].own, [NAN] * len(keys)) for m in rows[0].metrics}
    first = Row(reference, "reference", [reference.by_key[k] for k in keys], own, rows[0].summary)
    for row in (first, *rows):
        measure(row, first)
    budget = BUDGETS[align]
    mark_best(rows, budget)
    order = ["noise floor", "method"]
    give_names(rows)
    first.name = "reference"
    rows.sort(key=lambda r: (order.index(r.role), -(r.figures[budget] or 0), -(r.figures.get("psnr") or 0)))
    dropped = {e.name: len(scores) - len(keys) for e, scores, _ in read if len(scores) > len(keys)}
    return Table([first, *rows], footnotes([first, *rows], dropped, align))


def leave_out_uneven(read: list[tuple[dict, dict]]) -> None:
    """A pooled metric weighs samples by how many there are: where rows lack different ones it compares nothing."""
    for name in (metric.name for metric in METRICS.values() if metric.pooled):
        have = {
            frozenset(key for key, row in scores.items() if not math.isnan(row.get(name, NAN))) for scores, _ in read
        }
        if len(have) > 1:
            for scores, summary in read:
                for row in scores.values():
                    row |= {name: NAN, METRICS[name].own: NAN}
                if name in summary["metrics"]:
                    summary["metrics"][name] = {"unavailable": f"{name}: some rows lack samples that others have"}


def read_scores(experiment: Experiment, reference: Experiment) -> tuple[dict, dict]:
    """((prompt index, seed) -> metrics.csv row as numbers, summary.json)."""
    check_reference(experiment, reference)
    command = f"python src/evaluate.py {experiment.folder} reference={reference.folder}"
    try:
        text = (experiment.folder / "metrics.csv").read_text(encoding="utf-8")
        summary = json.loads((experiment.folder / "summary.json").read_text(encoding="utf-8"))
        judged = (summary["records_sha256"], summary["reference"]["records_sha256"])
    except FileNotFoundError:
        raise UserError(f"{experiment.folder} is not scored: {command}") from None
    except (ValueError, KeyError):
        raise UserError(f"the scores in {experiment.folder} cannot be read: {command}") from None
    if judged != (experiment.fingerprint, reference.fingerprint):
        raise UserError(f"{experiment.folder} was scored before it or its reference was last changed: {command}")
    rows = {}
    for line in csv.DictReader(io.StringIO(text)):
        numbers = {k: float(v) if v else NAN for k, v in line.items() if k != "id"}
        rows[int(numbers["prompt_index"]), int(numbers["seed"])] = numbers
    return rows, summary


def role(experiment: Experiment, reference: Experiment) -> str:
    """The reference's own algorithm run again shows how much two runs differ by themselves: the noise floor."""
    again = experiment.is_full and experiment.steps == reference.steps
    same = {r.algo for r in experiment.records} == {r.algo for r in reference.records}
    return "noise floor" if again and same else "method"


def make_row(experiment, role: str, keys: list, scores: dict, summary: dict) -> Row:
    names = [name for name in summary["metrics"] if name in METRICS]
    wanted = [*names, *(METRICS[name].own for name in names if METRICS[name].own), "identical"]
    columns = {name: [scores[k].get(name, NAN) for k in keys] for name in wanted}
    return Row(experiment, role, [experiment.by_key[k] for k in keys], columns, summary)


def measure(row: Row, reference: Row) -> None:
    """Fill the row's figures: times in seconds, memory in bytes, caption as a share."""
    first, f, why = row.records[0], row.figures, row.reasons
    totals = _measured(row, "total")
    f |= {"role": row.role, "experiment": row.experiment.name, "algo": first.algo, "forecaster": first.forecaster}
    f |= {"schedule": first.schedule, "site": first.site, "steps": row.experiment.steps}
    f |= {"passes": float(np.mean([r.nfe for r in row.records])), "samples": len(row.records)}
    f |= {"prompts": len(set(row.prompts)), "device": first.device, "git_sha": first.git_sha}
    f["latency_s"] = float(np.median(totals)) if totals else None
    f["latency_p90_s"] = float(np.quantile(totals, 0.9)) if totals else None
    f["full_step_s"], f["skipped_step_s"] = (_median(row, stage) for stage in ("full_step", "skipped_step"))
    f["cache_bytes"] = max(r.cache_bytes for r in row.records)
    f["peak_memory_bytes"] = max((r.peak_memory_bytes for r in row.records if r.peak_memory_bytes), default=None)
    shared = not any(r.alone for r in row.records)
    busy = "the device did other work meanwhile: no latency" if shared else "not measured"
    why["latency_s"] = why["speedup"] = busy
    why["skipped_step_s"] = busy if f["passes"] < f["steps"] else "no step is skipped"
    f["speedup"], against = None, _median(reference, "total")
    devices = {r.device for r in (*row.records, *reference.records)}
    if len(devices) > 1:
        why["speedup"] = f"a speedup needs one device, these are {', '.join(sorted(devices))}"
    elif row.experiment.runtime != reference.experiment.runtime:
        why["speedup"] = "a speedup needs the same runtime"
    elif totals and against is not None:
        f["speedup"] = against / f["latency_s"]
        f["speedup_low"], f["speedup_high"] = ratio_interval(_measured(reference, "total"), totals) or (None, None)
    for name in row.metrics:
        metric = METRICS[name]
        found = estimate(row.scores[name], row.prompts)
        f[name] = found["mean"]
        f[f"{name}_low"], f[f"{name}_high"] = found["interval"] or (None, None)
        f[f"{name}_best"] = False
        if found["mean"] is None:
            paired = row.role == "reference" and metric.kind == "paired"
            why[name] = ITSELF if paired else row.summary["metrics"][name].get("unavailable", "not measured")
        if row.role != "reference" and metric.own and f[name] is not None:
            found = estimate(np.subtract(row.scores[name], row.scores[metric.own]), row.prompts)
            f[f"{name}_minus_reference"] = found["mean"]
            f[f"{name}_minus_reference_low"], f[f"{name}_minus_reference_high"] = found["interval"] or (None, None)


def give_names(rows: list[Row]) -> None:
    """Call each method by its algorithm, and by what sets it apart from others of that name."""
    for row in rows:
        row.name = row.role if row.role == "noise floor" else row.figures["algo"]
    for key in ("site", "forecaster", "schedule", "experiment"):
        crowds: dict[str, list[Row]] = {}
        for row in rows:
            crowds.setdefault(row.name, []).append(row)
        for crowd in crowds.values():
            words = [re.findall(r"[^(),\s]+", row.figures[key]) for row in crowd]  # name(a=1, b=2) -> name a=1 b=2
            if len({own[0] for own in words}) == len(words):
                words = [own[:1] for own in words]  # uniform, adaptive_window: no arguments needed
            shared = set.intersection(*map(set, words))
            for row, own in zip(crowd, words, strict=True):
                row.name = " ".join([row.name, *(word.replace("_", " ") for word in own if word not in shared)])


def mark_best(rows: list[Row], budget: str) -> None:
    """In each metric mark the methods that none with as small a budget or a smaller one beats by more than chance, by
    bootstrap of the paired differences; nothing where that is all of them. Note each one's difference from the best."""
    for name in shown(rows):
        metric = METRICS[name]
        scored = [r for r in rows if r.role == "method" and r.figures[name] is not None]
        if len(scored) < 2 or scored[0].figures["prompts"] < 2:
            continue
        best = (max if metric.higher_is_better else min)(scored, key=lambda r: r.figures[name])
        for row in scored:
            found = estimate(np.subtract(row.scores[name], best.scores[name]), row.prompts)
            row.figures[f"{name}_minus_best"] = found["mean"]
            row.figures[f"{name}_minus_best_low"], row.figures[f"{name}_minus_best_high"] = (
                found["interval"] or (None,) * 2
            )
        winners = [
            row
            for row in scored
            if not any(
                metric.worse(row.figures[name], r.figures[name])
                and not tied(np.subtract(row.scores[name], r.scores[name]), row.prompts)
                for r in scored
                if _cost(r, budget) <= _cost(row, budget)
            )
        ]
        for row in winners if len(winners) < len(scored) else ():
            row.figures[f"{name}_best"] = True


def _cost(row: Row, budget: str) -> float:
    return math.inf if row.figures[budget] is None else row.figures[budget]  # what was not measured may be any


def footnotes(rows: list[Row], dropped: dict[str, int], align: str) -> list[str]:
    """What a reader must know to trust the table."""
    reference, *others = rows
    summary, records = others[0].summary, [r for row in rows for r in row.records]
    seeds = ", ".join(map(str, sorted({r.seed for r in records})))
    notes = [
        f"Means over {len(set(reference.prompts))} prompts ({len(reference.records)} samples, seed {seeds}) against "
        f"{reference.experiment.name}; in brackets 95 % BCa bootstrap intervals over prompts. Bold: no method "
        f"with as {'few passes or fewer' if align == 'passes' else f'little {align} or less'} "
        "is better by more than chance (paired differences, uncorrected for their number); "
        "nothing where that is all of them.",
        "Latency is the median of a sample, beside it the 90th percentile; speedup the ratio of this table's medians, "
        "with a 95 % percentile bootstrap interval; a skipped step in ms and as a share of a full one. "
        f"Device: {_all(r.device for r in records)}. Versions: "
        + "; ".join(sorted({", ".join(f"{k} {v}" for k, v in r.versions.items()) for r in records}))
        + f". Code: {_all(r.git_sha[:12] for r in records)}.",
    ]
    if len(set(reference.prompts)) < 10:
        notes.append("So few prompts make for rough intervals and ties.")
    lost = [
        (row.experiment.name, len(read_failures(row.experiment.folder)), len(row.experiment.records)) for row in rows
    ]
    if any(n for _, n, _ in lost):
        words = ", ".join(f"{name} {n} of {n + kept}" for name, n, kept in lost if n)
        notes.append(f"Samples that failed, with their reasons in the experiments' failures: {words}.")
    for name in shown(rows):
        scored = [
            (r.experiment.name, len(r.records) - int(np.isnan(r.scores[name]).sum()), len(r.records)) for r in rows
        ]
        if partly := [f"{who} {n} of {of}" for who, n, of in scored if 0 < n < of]:
            notes.append(f"{METRICS[name].label}: means over the samples that could be scored: {', '.join(partly)}.")
    if dropped:
        left = ", ".join(f"{n} of {name}" for name, n in dropped.items())
        notes.append(f"Samples that not every row has are left out: {left}.")
    same = [(row, int(sum(row.scores["identical"]))) for row in others]
    if listed := ", ".join(f"{row.experiment.name} {n} of {len(row.records)}" for row, n in same if n):
        notes.append(f"Identical to the reference in every pixel, counted as 100 dB: {listed}.")
    anchors = summary["anchors"]
    for kind, words in (("itself", "itself"), ("shuffled", "shuffled prompts")):
        if anchors[kind]:
            values = ", ".join(f"{name} {value:.4g}" for name, value in anchors[kind].items())
            notes.append(f"Sanity, the reference against {words}: {values}.")
    notes += [f"{METRICS[name].about}." for name in shown(rows) if METRICS[name].about]
    if judge := summary.get("judge"):
        shares = {k.replace("_", " "): v["caption"] for k, v in judge.items() if isinstance(v, dict) and "caption" in v}
        found = " and ".join(f"{100 * share:.1f} % of pictures {kind}" for kind, share in shares.items())
        notes.append(f"The caption judge itself is right on held-out captions for {found}.")
    if note := reference.experiment.model.get("note"):
        notes.append(str(note))
    return notes


def _measured(row: Row, stage: str) -> list[float]:
    return [r.latency[stage] for r in row.records if r.latency.get(stage) is not None and r.alone]


def _median(row: Row, stage: str) -> float | None:
    found = _measured(row, stage)
    return float(np.median(found)) if found else None


def _all(values) -> str:
    return ", ".join(dict.fromkeys(values))
