"""Writes the tables of docs/algorithms.md from configs/algo and tests/golden: python scripts/algorithms.py"""

import json
import re
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from spectrum_bench.decisions import Method
from spectrum_bench.paths import ROOT

PAGE = ROOT / "docs" / "algorithms.md"
MINIATURES = {"flux": "FLUX", "sd3": "SD3.5", "sdxl": "SDXL", "wan": "Wan", "hunyuan": "HunyuanVideo"}
PEERS = ("diffusers_", "cachedit_")
OF_STEPS = "for num_inference_steps="  # a refusal that says nothing of the model
METHOD = ("algo=", "method", "cached", "computed", "two guidance calls", "forecast", "linear", "fidelity", "runs on")
PEER = ("algo=", "what it is", "fidelity", "runs on")

Node = dict[str, Any]
Row = dict[str, str]


def read(group: str, name: str) -> tuple[str, Node]:
    """The first comment and the nodes of a YAML file."""
    text = (ROOT / "configs" / group / f"{name}.yaml").read_text(encoding="utf-8")
    comment = next((line for line in text.splitlines() if line.startswith("#") and "@package" not in line), None)
    if comment is None:
        sys.exit(f"error: configs/{group}/{name}.yaml begins with no comment: say in its first line what it is")
    return comment.lstrip("# "), yaml.safe_load(text)


def chosen(node: Node, group: str) -> str:
    """The name that an algorithm's defaults override a group with; empty if none."""
    pairs = [pair for entry in node.get("defaults", []) for pair in entry.items()]
    return next((str(name) for key, name in pairs if f"/{group}@" in key), "")


def row(algo: str) -> Row:
    """The cells of an algorithm by column."""
    about, node = read("algo", algo)
    schedule, forecaster = chosen(node, "schedule"), str((node.get("forecaster") or {}).get("_target_", ""))
    words = {"algo=": f"`{algo}`", "method": linked(about), "what it is": linked(about), "runs on": runs_on(algo)}
    words |= {"cached": f"`{chosen(node, 'site')}`", "computed": f"`{schedule}`"}
    words["two guidance calls"] = guidance(schedule)
    words["forecast"] = f"`{forecaster.rpartition('.')[2]}`"
    words["linear"] = str(node.get("linear", "yes"))
    return words | {"fidelity": str(node.get("fidelity", "yardstick"))}


def linked(about: str) -> str:
    """Numbers of arXiv as links; a table's bar cannot stand in a cell."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", about).replace("|", "/")


def guidance(schedule: str) -> str:
    """Who decides about the second of two guidance calls of a step."""
    rule = resolve_name(read("schedule", schedule)[1]["_target_"])
    if not isinstance(rule, Method):
        return "same steps"
    return "the first decides" if rule.shared else "each decides"


def runs_on(algo: str) -> str:
    """The miniatures that do not refuse the algorithm, by the golden values."""
    lines = {m: json.loads((ROOT / "tests/golden" / f"tiny-{m}.json").read_text()).get(algo, {}) for m in MINIATURES}
    if not all(lines.values()):
        sys.exit(f"error: algo={algo} has no golden values on every miniature: run python tests/golden.py first")
    fits = [name for m, name in MINIATURES.items() if OF_STEPS in lines[m].get("refused", OF_STEPS)]
    return "all" if len(fits) == len(MINIATURES) else ", ".join(fits)


def table(columns: tuple[str, ...], algos: list[str]) -> str:
    """A Markdown table with a line for each algorithm."""
    rows = [row(algo) for algo in algos]
    lines = [columns, ("---",) * len(columns), *([each[column] for column in columns] for each in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(text: str) -> str:
    """The page with its tables anew: what stands between the marks of each."""
    names = sorted(path.stem for path in (ROOT / "configs" / "algo").glob("*.yaml"))
    peers = [name for name in names if name.startswith(PEERS)]
    methods = [name for name in names if name not in (*peers, "nocache", "steps")]
    for mark, made in (("methods", table(METHOD, methods)), ("peers", table(PEER, peers))):
        begin, end = f"<!-- {mark}: python scripts/algorithms.py -->", f"<!-- end of {mark} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
