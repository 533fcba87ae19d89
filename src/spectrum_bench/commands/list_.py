"""list: the choices of an axis, one line each.

usage: spectrum-bench list algos|models|schedules|sites|metrics
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from spectrum_bench.commands.words import nearest
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT

GROUPS = {
    "algos": "algo",
    "models": "model",
    "schedules": "schedule",
    "sites": "site",
    "histories": "history",
    "corrections": "correct",
}


@dataclass(frozen=True)
class Choice:
    """One YAML file of a group: its name, its first comment, and for an algorithm the paper and the fidelity."""

    name: str
    about: str
    paper: str = ""
    fidelity: str = ""


def main(argv: list[str]) -> None:
    """Print the choices of a group."""
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return
    what = argv[0]
    if what == "metrics":
        from spectrum_bench.scoring.metrics import METRICS

        _print({name: metric.about or metric.label for name, metric in METRICS.items()})
    elif what in GROUPS:
        print_choices(GROUPS[what])
    else:
        known = [*GROUPS, "metrics"]
        raise UserError(f"there is nothing called {what}{nearest(what, known)}: choose of {', '.join(known)}")


def print_choices(group: str) -> None:
    """Print the choices in configs/<group>."""
    _print({each.name: describe(each) for each in choices(group)})


def overview() -> str:
    """The names of all choices, a paragraph a group. Those in a folder are counted."""
    paragraphs = []
    for group in GROUPS.values():
        names = sorted(_files(group))
        folders = Counter(name.partition("/")[0] for name in names if "/" in name)
        plain = [name for name in names if "/" not in name]
        listed = ", ".join([*plain, *(f"{folder}/... ({count})" for folder, count in folders.items())])
        paragraphs.append(fill(f"{group}: {listed}", 118, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(paragraphs)


def _print(lines: Mapping[str, str]) -> None:
    width = max(map(len, lines))
    for name, about in lines.items():
        print(f"{name:{width}}  {about}")


def describe(choice: Choice) -> str:
    """One line about a choice, with the fidelity of an algorithm in brackets."""
    return choice.about + (f" [{choice.fidelity}]" if choice.fidelity else "")


def choices(group: str) -> list[Choice]:
    """The choices in configs/<group> and its folders, ordered by name."""
    return [_read(name, path) for name, path in sorted(_files(group).items())]


def _files(group: str) -> dict[str, Path]:
    folder = ROOT / "configs" / group
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}


def _read(name: str, path: Path) -> Choice:
    text = path.read_text(encoding="utf-8")
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    node: dict[str, Any] = yaml.safe_load(text) or {}
    about = comments[0] if comments else ""
    return Choice(name, about, str(node.get("paper", "")), str(node.get("fidelity", "")))
