"""Writes the leaderboard as one page that needs no server and fetches nothing."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from spectrum_bench.reporting.board.read import Entry, Line, Results, figure, read_lines
from spectrum_bench.reporting.board.samples import pictures
from spectrum_bench.sampling.records import write_atomically
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.metrics.contracts import Metric

HERE = Path(__file__).parent
COSTS = "memory/methods.csv"  # of the folder of results, written by scripts/method_memory.py


def write(results: Results, costs: Sequence[Line], folder: Path, out: Path, runs: Sequence[Experiment] = ()) -> None:
    """Write the page.

    Args:
        costs: the lines of COSTS.
        folder: of the results, to which the page's links lead.
        runs: whose samples the page shows beside their rows.
    """
    base = Path(os.path.relpath(folder.resolve().parent, out.resolve().parent)).as_posix()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    parts = {name: (HERE / f"board.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    page = environment.get_template("board.html.j2").render(
        data=embedded({"base": f"{base}/", **data(results, costs, runs)}),
        metrics=computed(results),
        count=len(results.entries),
        others=results.others,
        **parts,
    )
    write_atomically(out, page.encode())


def read_costs(folder: Path) -> list[dict[str, str]]:
    """The lines of COSTS in a folder of results; none if it has no such file."""
    path = folder / COSTS
    return read_lines(path) if path.is_file() else []


def embedded(value: object) -> str:
    """JSON that may stand in a script element, whatever its texts are."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data(results: Results, costs: Sequence[Line], runs: Sequence[Experiment]) -> dict[str, Any]:
    """What the page's script reads."""
    first: dict[str, int] = {}
    for number, entry in enumerate(results.entries):
        first.setdefault(entry.file, number)
    return {
        "rows": [plain(entry, first[entry.file]) for entry in results.entries],
        "metrics": {
            each.name: {"label": each.label, "up": each.higher_is_better, "factor": each.factor, "digits": each.digits}
            for each in computed(results)
        },
        "models": results.models,
        "pictures": pictures(results.entries, runs),
        "costs": [cost(line) for line in costs],
    }


def computed(results: Results) -> list[Metric]:
    """The metrics that some row was scored by; PSNR where there is none, as with times of a GPU alone."""
    known = [metric for name, metric in METRICS.items() if any(name in entry.scores for entry in results.entries)]
    return known or [METRICS["psnr"]]


def plain(entry: Entry, first: int) -> dict[str, Any]:
    """An entry for JSON, with few digits and without what is empty.

    Args:
        first: the number of its table's first row among all rows.
    """
    row = {key: value for key, value in asdict(entry).items() if value not in (None, "", {}, ())}
    row["scores"] = {name: [rounded(each) for each in bounds] for name, bounds in entry.scores.items()}
    row["speedup"] = None if entry.speedup is None else [rounded(each) for each in entry.speedup]
    if entry.beaten_by is not None:
        row["beaten_by"] = {name: [first + place for place in places] for name, places in entry.beaten_by.items()}
    return row


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def cost(line: Mapping[str, str]) -> dict[str, Any]:
    """A line of COSTS with its numbers as numbers."""
    texts = ("model", "size", "method")
    return {key: line[key] if key in texts else figure(line, key) for key in line}
