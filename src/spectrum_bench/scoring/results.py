"""An experiment's scores on disk: metrics.csv and summary.json, which are one result and stay one.

summary.json holds the hashes of metrics.csv and of everything that was scored. A new evaluation first writes
metrics.csv.new, then replaces summary.json, then renames metrics.csv.new. Replacing summary.json is the moment at which
the new result counts: a process that dies earlier leaves the old result, and one that dies later leaves the new one.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import reading
from spectrum_bench.sampling.reading import Damaged, check, parse_json, read_bytes, read_text, shown
from spectrum_bench.sampling.records import sweep, write_atomically
from spectrum_bench.sampling.settings import SCHEMA
from spectrum_bench.sampling.text import from_cell
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import by_prompt
from spectrum_bench.scoring.summary import Summary

SUMMARY, METRICS_FILE = "summary.json", "metrics.csv"
NEW = f"{METRICS_FILE}.new"  # a metrics.csv on its way into its place
KEYS = ["prompt_index", "seed"]


def save(folder: Path, summary: Summary, text: str) -> Summary:
    """Write both files, and return the summary with the hash of metrics.csv.

    Args:
        text: of metrics.csv.
    """
    sweep(folder)
    data = text.encode()
    summary = {**summary, "metrics_sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / NEW, data)
    words = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / SUMMARY, f"{words}\n".encode())  # from here on the new result is the one
    (folder / NEW).replace(folder / METRICS_FILE)
    return summary


def columns(names: Sequence[str]) -> list[str]:
    """The columns of metrics.csv: scores, their details, the reference's own scores. What belongs to no single
    sample has none."""
    metrics = [METRICS[name] for name in names if METRICS[name].kind != "set"]
    details = [detail for metric in metrics for detail in metric.details]
    own = [metric.own for metric in metrics if metric.own]
    return ["id", *KEYS, *(metric.name for metric in metrics), *details, *own, "identical"]


def load(experiment: Experiment, reference: Experiment) -> tuple[pd.DataFrame, Summary]:
    """Scores by prompt index and seed, a column a metric, and the summary that belongs to them.

    Raises:
        UserError: the scores are missing, damaged, or of another state of the experiment or its reference.
    """
    command = f"python src/evaluate.py {experiment.folder} reference={reference.folder}"
    try:
        summary = read_summary(experiment.folder / SUMMARY)
        data = _metrics(experiment.folder, summary)
    except FileNotFoundError:
        raise UserError(f"{experiment.folder} is not scored: {command}") from None
    except Damaged as reason:
        raise UserError(f"the scores in {experiment.folder} cannot be read: {command} ({reason})") from None
    if data is None or not _is_of(summary, experiment, reference):
        raise UserError(f"{experiment.folder} was scored before it or its reference was last changed: {command}")
    try:
        scores = _parse(data, experiment)
        _check_columns(scores, summary)
        if "metrics_sha256" not in summary:
            _check_means(scores, experiment, summary)
    except Damaged as reason:
        raise UserError(
            f"the scores in {experiment.folder} cannot be read: {command} ({METRICS_FILE}: {reason})"
        ) from None
    return scores, summary


def read_summary(path: Path) -> Summary:
    """Read summary.json of this schema or an older one.

    Raises:
        FileNotFoundError: the file does not exist.
        Damaged: this version cannot read the file.
    """
    summary: Summary = parse_json(read_text(path, reading.RECORD))
    try:
        check(Summary, summary)
        if not 1 <= summary.get("schema", 1) <= SCHEMA:
            raise Damaged(f"schema is {summary['schema']}")
        lacking = [key for key in ("metrics_sha256", *HASHES) if key not in summary]
        lacking += [f"reference.{key}" for key in HASHES if key not in summary["reference"]]
        if summary.get("schema", 1) > 1 and lacking:
            raise Damaged(f"{lacking[0]} is missing")
        for name, metric in summary["metrics"].items():
            if "unavailable" not in metric and not {"mean", "interval", "n", "unit"} <= metric.keys():
                raise Damaged(f"metrics.{name} is not whole")
    except Damaged as reason:
        raise Damaged(f"{SUMMARY}: {reason}") from None
    return summary


HASHES = ("config_sha256", "samples_sha256")  # beside records_sha256, which schema 1 has too


def _is_of(summary: Summary, experiment: Experiment, reference: Experiment) -> bool:
    """Whether the experiment and its reference are the ones that were scored."""
    scored: list[tuple[dict[str, object], Experiment]] = [
        ({**summary}, experiment),
        ({**summary["reference"]}, reference),
    ]
    return all(hashes[key] == value for hashes, e in scored for key, value in e.digests.items() if key in hashes)


def _metrics(folder: Path, summary: Summary) -> bytes | None:
    """The metrics.csv that belongs to the summary; None if there is none. A summary of schema 1 names no hash."""
    if "metrics_sha256" not in summary:
        return read_bytes(folder / METRICS_FILE, reading.TABLE)
    missing = 0
    for name in (METRICS_FILE, NEW):
        try:
            data = read_bytes(folder / name, reading.TABLE)
        except FileNotFoundError:
            missing += 1
            continue
        if hashlib.sha256(data).hexdigest() == summary["metrics_sha256"]:
            return data
    if missing == 2:
        raise FileNotFoundError
    return None


def _parse(data: bytes, experiment: Experiment) -> pd.DataFrame:
    """The table, every row of a sample of the experiment, every score a finite number or blank."""
    try:
        head, *lines = csv.reader(io.StringIO(data.decode("utf-8")), strict=True)
    except (ValueError, csv.Error) as error:
        raise Damaged(f"no table: {str(error)[:80]}") from None
    if head[:3] != ["id", *KEYS] or "identical" not in head or len(set(head)) < len(head):
        raise Damaged("its columns are others")
    if wrong := [line for line in lines if len(line) != len(head)]:
        raise Damaged(f"a row of {len(wrong[0])} cells")
    keys = [_key(line, experiment) for line in lines]
    if len(set(keys)) < len(keys) or not keys:
        raise Damaged("a sample has two rows" if keys else "it has no row")
    values = [[_score(cell) for cell in line[3:]] for line in lines]
    return pd.DataFrame(values, pd.MultiIndex.from_tuples(keys, names=KEYS), head[3:], dtype=float)


def _key(line: list[str], experiment: Experiment) -> tuple[int, int]:
    identity, prompt, seed = from_cell(line[0]), *line[1:3]
    if not (prompt.isdecimal() and seed.isdecimal() and len(prompt + seed) < 40):
        raise Damaged(f"no sample {shown(prompt)}, {shown(seed)}")
    key = int(prompt), int(seed)
    if key not in experiment.by_key or experiment.by_key[key].id != identity:
        raise Damaged(f"no sample {key} of id {shown(identity)} is in records.jsonl")
    return key


def _score(cell: str) -> float:
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value) or (cell and math.isnan(value)):
        raise Damaged(f"a score is {shown(cell)}")
    return value


def _check_columns(scores: pd.DataFrame, summary: Summary) -> None:
    for name, metric in summary["metrics"].items():
        columns = [name, METRICS[name].own or name] if name in METRICS and METRICS[name].kind != "set" else []
        lacking = [column for column in columns if column not in scores and "unavailable" not in metric]
        if lacking:
            raise Damaged(f"column {lacking[0]} is missing")


def _check_means(scores: pd.DataFrame, experiment: Experiment, summary: Summary) -> None:
    """Check that the means of metrics.csv are those in summary.json. Schema 1 has no hash that ties the two files."""
    prompts = [experiment.by_key[key].subject for key in scores.index]
    for name, metric in summary["metrics"].items():
        mean = metric.get("mean")
        if name in scores and mean is not None:
            means = by_prompt(scores[name].tolist(), prompts)
            if not len(means) or not np.isclose(means.mean(), mean, rtol=1e-9, atol=1e-12):
                raise Damaged(f"{name} has another mean than {SUMMARY}")
    if len(scores) != summary["samples"]:
        raise Damaged(f"it has {len(scores)} rows, {SUMMARY} {summary['samples']}")
