"""The Spectrum paper's tables and figures as lists of runs (configs/experiment), and its numbers beside ours."""

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path

import yaml
from scipy.stats import kendalltau

from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.reporting.tables import Row, Table
from spectrum_bench.scoring.metrics import METRICS

EXPERIMENTS = ROOT / "configs" / "experiment"
CALIBRATION = ROOT / "configs" / "calibration"
CITED = ROOT / "results" / "paper"
# Our figures under the names of the paper's columns.
COLUMNS = {"latency_s": "latency_s", "psnr": "psnr", "ssim": "ssim", "lpips": "lpips", "nfe": "passes"}
COLUMNS |= {"image_reward": "imagereward", "clip": "clip", "vbench_quality": "vbench_standard"}


RMSE = "rmse_step_"


@dataclass(frozen=True)
class Run:
    """One row of an experiment."""

    name: str
    words: list[str]  # of text_to_image.py's command line
    cited: dict[str, str] | None  # the paper's row; None where it has none


@dataclass(frozen=True)
class Plan:
    """An experiment on one model."""

    name: str
    title: str
    model: str
    runs: list[Run]
    prompt_file: str | None  # None: the model's own default
    prompts: int | None  # how many of them; None: all
    gpu_hours: float  # on the paper's hardware at full size
    baseline: str | None
    line: str | None  # of a figure: the key that tells its lines apart
    calibrate: tuple[str, ...]  # algorithms that must have been measured for this model, and have not been


def names() -> list[str]:
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def read_plans(name: str, model: str | None = None) -> list[Plan]:
    """The experiment on each of its models, or on `model` instead.

    Raises:
        UserError: there is no such experiment, or no such model.
    """
    if name not in names():
        raise UserError(f"there is no experiment {name}: choose of {', '.join(names())}")
    models = sorted(path.stem for path in (ROOT / "configs" / "model").glob("*.yaml"))
    if model and model not in models:
        raise UserError(f"there is no model={model}: choose of {', '.join(models)}")
    node = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    return [_plan(name, node, m) for m in ([model] if model else node["models"])]


def _plan(name: str, node: dict, model: str) -> Plan:
    own = model in node["models"]
    meant = model if own else node["models"][0]  # whose rows of the paper stand beside a miniature's
    chosen = node.get("chosen") or {}
    values = chosen.get(model) or chosen.get("default") or {}
    common = [w for w in node.get("words", "").split() if own or w.startswith("keep_latents")]
    cited = _cited(node.get("paper"), meant)
    runs = []
    for key, row in node["rows"].items():
        words = [word.format(**values) for word in row["words"].split()]
        runs.append(Run(key, [*words, *common], _find(cited, row.get("paper"), f"{name}: {key}")))
    grid = dict(node.get("grid") or {})
    words, line = grid.pop("words", ""), grid.pop("line", None)
    for values in itertools.product(*grid.values()) if grid else ():
        pairs = dict(zip(grid, values, strict=True))
        key = ",".join(f"{k.rpartition('.')[2]}={v}" for k, v in pairs.items())
        runs.append(Run(key, [*words.split(), *(f"{k}={v}" for k, v in pairs.items()), *common], None))
    prompts = node["prompt_file"] if isinstance(node["prompt_file"], str) else node["prompt_file"][meant]
    limit = node.get("total_prompt_num")
    return Plan(
        name,
        node["title"] if own else f"{node['title']}, on {model}",
        model,
        runs,
        prompts if own else None,
        limit,
        node["gpu_hours"],
        node.get("baseline"),
        line,
        tuple(a for a in node.get("calibrate") or () if not (CALIBRATION / a / f"{model}.json").is_file()),
    )


def _cited(paper: dict | None, model: str) -> list[dict[str, str]]:
    if not paper:
        return []
    with open(CITED / f"{paper['table']}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = paper["model"].get(model)
    return [row for row in rows if wanted is None or row.get("model") == wanted]


def _find(cited: list[dict[str, str]], keys: dict | None, where: str) -> dict[str, str] | None:
    """The one cited row with these values."""
    if keys is None:
        return None

    def same(row, key, value):
        return float(row[key] or "nan") == value if isinstance(value, (int, float)) else row[key] == value

    found = [row for row in cited if all(same(row, key, value) for key, value in keys.items())]
    if len(found) != 1:
        raise ValueError(f"{where}: {keys} names {len(found)} rows of the paper's table")
    return found[0]


# ---------------------------------------------------------------------------------------------------------------------


def side_by_side(table: Table, plan: Plan) -> str:
    """Markdown: for each row of the paper its numbers, ours, and the difference."""
    cited = {run.name: run.cited for run in plan.runs if run.cited}
    rows = [row for row in table.rows if _run_name(row) in cited]
    columns = [c for c in next(iter(cited.values())) if _known(c) and any(cited[_run_name(r)][c] for r in rows)]
    speedups = "speedup" in next(iter(cited.values()))
    reference = next((float(c["latency_s"]) for c in cited.values() if c.get("budget") == "reference"), None)
    titles = ["Row"]
    titles += [f"{c} {kind}" for c in map(_title, columns) for kind in ("paper", "ours", "difference")]
    titles += ["Speedup printed", "recomputed", "ours"] if speedups else []
    lines = [f"# {plan.title}", "", "| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
    for row in rows:
        theirs, cells = cited[_run_name(row)], [row.name + f" ({_run_name(row)})"]
        for column in columns:
            cells += _compare(theirs[column], row, column)
        if speedups:
            recomputed = f"{reference / float(theirs['latency_s']):.2f}×" if reference else "—"
            ours = row.figures["speedup"]
            cells += [f"{theirs['speedup']}×", recomputed, f"{ours:.2f}×" if ours is not None else "—"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Paper: printed numbers, cited (results/paper). Ours: {plan.model}, run here; table.md has its intervals ",
    ]
    lines[-1] += "and conditions. A dash: not printed, or not measured here."
    if orders := _agreement(rows, cited, columns):
        lines += ["", f"Do both put the rows in the same order? Kendall's tau, 1 if they do, 0 if by chance: {orders}."]
    left = [run.name for run in plan.runs if run.cited is None]
    if left:
        lines += ["", f"Rows that the paper does not have: {', '.join(left)}."]
    return "\n".join(lines) + "\n"


def _agreement(rows: list[Row], cited: dict[str, dict], columns: list[str]) -> str:
    """Kendall's tau of the paper's figures and ours, by column, over the rows that have both. Passes are set, so that
    theirs tells nothing."""
    found = []
    for column in [c for c in columns if c != "nfe"]:
        both = [(float(cited[_run_name(r)][column] or "nan"), _ours(r, column)) for r in rows]
        both = [(theirs, ours) for theirs, ours in both if ours is not None and theirs == theirs]
        if len(both) > 3:
            found.append(f"{_title(column)} {kendalltau(*zip(*both, strict=True)).statistic:.2f} ({len(both)} rows)")
    return ", ".join(found)


def _run_name(row: Row) -> str:
    return row.experiment.folder.name


def _known(column: str) -> bool:
    return column in COLUMNS or column.startswith(RMSE)


def _ours(row: Row, column: str) -> float | None:
    if column.startswith(RMSE):
        step = int(column.removeprefix(RMSE))
        return row.latents[step - 1] if row.latents and len(row.latents) >= step else None
    return row.figures.get(COLUMNS[column])


def _title(column: str) -> str:
    if column.startswith(RMSE):
        return f"Latents' RMSE after step {column.removeprefix(RMSE)}"
    if COLUMNS[column] in METRICS:
        return METRICS[COLUMNS[column]].label
    return {"latency_s": "Latency s", "nfe": "Passes"}[column]


def _compare(printed: str, row: Row, column: str) -> list[str]:
    ours, name = _ours(row, column), COLUMNS.get(column)
    k = METRICS[name].factor if name in METRICS else 1
    digits = METRICS[name].digits if name in METRICS else {"latency_s": 2, "nfe": 1}.get(column, 4)
    mine = "—" if ours is None else f"{k * ours:.{digits}f}"
    difference = "—" if ours is None or not printed else f"{k * ours - float(printed):+.{digits}f}"
    return [printed or "—", mine, difference]


def lines_of(table: Table, plan: Plan) -> dict[str, list[Row]]:
    """Of a figure: value of `plan.line` -> its rows."""
    found: dict[str, list[Row]] = {}
    words = {run.name: dict(word.split("=", 1) for word in run.words if "=" in word) for run in plan.runs}
    for row in table.rows:
        if row.role == "method" and plan.line in words.get(_run_name(row), {}):
            found.setdefault(words[_run_name(row)][plan.line], []).append(row)
    return found


def output_folder(plan: Plan) -> Path:
    """Where its report goes: results/tiny/flux/table1_flux, results/flux/table1_flux."""
    return ROOT / "results" / plan.model.replace("tiny-", "tiny/") / plan.name
