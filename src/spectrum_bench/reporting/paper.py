"""Papers' tables and figures as lists of runs (configs/experiment), and the printed numbers beside ours."""

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy.stats import kendalltau

from spectrum_bench.errors import UserError
from spectrum_bench.paths import CALIBRATION, CITED, MODELS, ROOT
from spectrum_bench.reporting import notes
from spectrum_bench.reporting.cells import DASH
from spectrum_bench.reporting.formats import md, pipe_table
from spectrum_bench.reporting.rows import Row, Table
from spectrum_bench.scoring.metrics import METRICS

EXPERIMENTS = ROOT / "configs" / "experiment"
SOURCE = "spectrum"  # the folder below CITED for experiments that name none
RENAMED = {"image_reward": "imagereward", "vbench_quality": "vbench_standard"}  # a paper's column -> our metric
OTHERS = {"latency_s": "Latency s", "nfe": "Passes"}  # columns other than metrics -> their titles
RMSE = "rmse_step_"

Cited = dict[str, str]  # a row of a paper's table: column -> printed text


@dataclass(frozen=True)
class Run:
    """One row of an experiment."""

    name: str
    words: list[str]  # words of text_to_image.py's command line
    cited: Cited | None  # the row in the paper; None if it has none
    passes: float | None = None  # that a threshold is to be found for; None: the words say all


@dataclass(frozen=True)
class Plan:
    """An experiment on one model."""

    name: str
    title: str
    model: str
    runs: list[Run]
    prompt_file: str | None  # None: the model's own default
    prompts: int | None  # the number of prompts; None: all
    gpu_hours: float  # on the paper's hardware at full size
    baseline: str | None
    line: str | None  # for a figure: the key whose values are its lines
    calibrate: tuple[str, ...]  # algorithms that need constants for this model which are not measured yet
    source: str  # the paper's folder in results/paper
    miniature: str | None = None  # that stands for the model where there is no GPU


def names() -> list[str]:
    """The experiments' names."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def read_plans(name: str, model: str | None = None) -> list[Plan]:
    """The experiment on each of its models, or on `model` instead.

    Raises:
        UserError: there is no such experiment, no such model, or no such table of a paper.
    """
    if name not in names():
        raise UserError(f"there is no experiment {name}: choose of {', '.join(names())}")
    models = sorted(path.stem for path in MODELS.glob("*.yaml"))
    if model and model not in models:
        raise UserError(f"there is no model={model}: choose of {', '.join(models)}")
    node = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    return [_plan(name, node, m) for m in ([model] if model else node["models"])]


def _plan(name: str, node: dict[str, Any], model: str) -> Plan:
    own = model in node["models"]
    original = model if own else node["models"][0]  # the paper's model beside which a miniature's rows stand
    common = [w for w in node.get("words", "").split() if own or w.startswith("keep_latents")]
    prompts = node["prompt_file"] if isinstance(node["prompt_file"], str) else node["prompt_file"][original]
    grid = dict(node.get("grid") or {})
    return Plan(
        name,
        node["title"] if own else f"{node['title']}, on {model}",
        model,
        [*_listed_runs(name, node, original, common), *_grid_runs(grid, common)],
        prompt_file=prompts if own else None,
        prompts=node.get("total_prompt_num"),
        gpu_hours=node["gpu_hours"],
        baseline=node.get("baseline"),
        line=grid.get("line"),
        calibrate=tuple(a for a in node.get("calibrate") or () if not (CALIBRATION / a / f"{model}.json").is_file()),
        source=_source(node.get("paper")),
        miniature=(node.get("miniatures") or {}).get(model),
    )


def _listed_runs(name: str, node: dict[str, Any], original: str, common: list[str]) -> list[Run]:
    """The runs that an experiment lists one by one."""
    cited = _cited(node.get("paper"), original)
    runs = []
    for key, row in node["rows"].items():
        printed = _find(cited, row.get("paper"), f"{name}: {key}")
        runs.append(Run(key, [*row["words"].split(), *common], printed, row.get("passes")))
    return runs


def _grid_runs(grid: dict[str, Any], common: list[str]) -> list[Run]:
    """One run for every combination of a grid's values."""
    axes = {key: values for key, values in grid.items() if key not in ("words", "line")}
    runs = []
    for values in itertools.product(*axes.values()) if axes else ():
        pairs = dict(zip(axes, values, strict=True))
        key = ",".join(f"{k.rpartition('.')[2]}={v}" for k, v in pairs.items())
        words = [*grid.get("words", "").split(), *(f"{k}={v}" for k, v in pairs.items())]
        runs.append(Run(key, [*words, *common], None))
    return runs


def _source(paper: dict[str, Any] | None) -> str:
    return str((paper or {}).get("source", SOURCE))


def _cited(paper: dict[str, Any] | None, model: str) -> list[Cited]:
    """The rows of a paper's table for a model.

    Raises:
        UserError: there is no such table.
    """
    if not paper:
        return []
    path = CITED / _source(paper) / f"{paper['table']}.csv"
    if not path.is_file():
        raise UserError(f"no {path}: write the paper's numbers there, as results/paper/README.md says")
    with open(path, encoding="utf-8", newline="") as file:  # as printed; a data frame would turn the text into numbers
        rows = list(csv.DictReader(file))
    wanted = paper["model"].get(model)
    return [row for row in rows if wanted is None or row.get("model") == wanted]


def _find(cited: list[Cited], keys: dict[str, Any] | None, where: str) -> Cited | None:
    """The one cited row with these values."""
    if keys is None:
        return None

    def same(row: Cited, key: str, value: object) -> bool:
        return float(row[key] or "nan") == value if isinstance(value, (int, float)) else row[key] == value

    rows = [row for row in cited if all(same(row, key, value) for key, value in keys.items())]
    if len(rows) != 1:
        raise ValueError(f"{where}: {keys} names {len(rows)} rows of the paper's table")
    return rows[0]


# ---------------------------------------------------------------------------------------------------------------------


def side_by_side(table: Table, plan: Plan, thresholds: Sequence[str] = ()) -> str:
    """Markdown: for each row of the paper the printed numbers, ours, and the difference.

    Args:
        thresholds: a sentence about each threshold that was found for a row.
    """
    cited = {run.name: run.cited for run in plan.runs if run.cited}
    pairs = [(row, cited[_run_name(row)]) for row in table.rows if _run_name(row) in cited]
    columns = [c for c in next(iter(cited.values())) if _comparable(c) and any(printed[c] for _, printed in pairs)]
    speedups = "speedup" in next(iter(cited.values()))
    reference = next((float(c["latency_s"]) for c in cited.values() if c.get("budget") == "reference"), None)
    titles = ["Row", *(f"{_title(c)} {kind}" for c in columns for kind in ("paper", "ours", "difference"))]
    titles += ["Speedup printed", "recomputed", "ours"] if speedups else []
    lines = []
    for row, printed in pairs:
        line = [md(f"{row.name} ({_run_name(row)})"), *(cell for c in columns for cell in _compare(printed[c], row, c))]
        lines.append([*line, *(_speedups(printed, row, reference) if speedups else [])])
    grid = pipe_table(pd.DataFrame(lines, columns=titles))
    uncited = [run.name for run in plan.runs if run.cited is None]
    below = [*notes.beside_paper(plan.source, plan.model, _agreement(pairs, columns), uncited), *thresholds]
    return "\n\n".join([f"# {plan.title}", grid, *map(md, below)]) + "\n"


def _speedups(printed: Cited, row: Row, reference: float | None) -> list[str]:
    """The printed speedup, the speedup computed from the paper's latencies, and ours."""
    recomputed = f"{reference / float(printed['latency_s']):.2f}×" if reference else DASH
    ours = row.costs.speedup
    return [f"{printed['speedup']}×", recomputed, f"{ours.mean:.2f}×" if ours else DASH]


def _agreement(pairs: list[tuple[Row, Cited]], columns: list[str]) -> str:
    """Kendall's tau of the paper's figures and ours, by column, over the rows that have both. Passes are left out:
    the runs set them, so that their order says nothing."""
    agreements = []
    for column in columns:
        both = [(float(printed[column] or "nan"), _ours(row, column)) for row, printed in pairs]
        known = [(cited, ours) for cited, ours in both if ours is not None and not math.isnan(cited)]
        if column != "nfe" and len(known) > 3:
            tau = kendalltau(*zip(*known, strict=True)).statistic
            agreements.append(f"{_title(column)} {tau:.2f} ({len(known)} rows)")
    return ", ".join(agreements)


def _run_name(row: Row) -> str:
    return row.experiment.folder.name


def _metric(column: str) -> str:
    return RENAMED.get(column, column)


def _comparable(column: str) -> bool:
    """Whether we measure a paper's column too."""
    return _metric(column) in METRICS or column in OTHERS or column.startswith(RMSE)


def _ours(row: Row, column: str) -> float | None:
    """Our value of a paper's column."""
    if column.startswith(RMSE):
        step = int(column.removeprefix(RMSE))
        return row.latents[step - 1] if row.latents and len(row.latents) >= step else None
    if column in OTHERS:
        return {"latency_s": row.costs.latency_s, "nfe": row.costs.passes}[column]
    return row.mean(_metric(column))


def _title(column: str) -> str:
    if column.startswith(RMSE):
        return f"Latents' RMSE after step {column.removeprefix(RMSE)}"
    return OTHERS[column] if column in OTHERS else METRICS[_metric(column)].label


def _compare(printed: str, row: Row, column: str) -> tuple[str, str, str]:
    """The printed value, ours, and the difference."""
    ours, metric = _ours(row, column), METRICS.get(_metric(column))
    factor = metric.factor if metric else 1
    digits = metric.digits if metric else {"latency_s": 2, "nfe": 1}.get(column, 4)
    if ours is None:
        return printed or DASH, DASH, DASH
    difference = f"{factor * ours - float(printed):+.{digits}f}" if printed else DASH
    return printed or DASH, f"{factor * ours:.{digits}f}", difference


def lines_of(table: Table, plan: Plan) -> dict[str, list[Row]]:
    """The rows of each line of a figure, by the value of `plan.line`."""
    lines: dict[str, list[Row]] = {}
    words = {run.name: dict(word.split("=", 1) for word in run.words if "=" in word) for run in plan.runs}
    for row in table.methods:
        if plan.line and plan.line in words.get(_run_name(row), {}):
            lines.setdefault(words[_run_name(row)][plan.line], []).append(row)
    return lines


def output_folder(plan: Plan, reports: Path) -> Path:
    """The report's folder in one of reports, such as results/tiny/flux/table1_flux or results/flux/table1_flux."""
    return reports / plan.model.replace("tiny-", "tiny/") / plan.name
