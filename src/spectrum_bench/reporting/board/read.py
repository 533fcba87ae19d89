"""Reads the rows of a folder of results: our tables, times of a GPU, tables of papers, lists of a study."""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from spectrum_bench.errors import UserError
from spectrum_bench.reporting.board.chance import beaten
from spectrum_bench.sampling.reading import TABLE, Damaged, read_text
from spectrum_bench.scoring.metrics import METRICS

Line = Mapping[str, str]
Bounds = tuple[float, float | None, float | None]  # a mean and its interval; None: none is known

PRINTED = {"imagereward": "image_reward", "vbench": "vbench_quality"}  # as papers' tables call them
NO_ROWS = {  # files that hold other things
    "prompts.csv": "scores by prompt, from which this page tells ties",
    "differences.csv": "paired differences from one row of the table beside it",
    "forecast.csv": "times of the forecast alone",
    "findings.csv": "what hooks promise and keep",
    "cross.csv": "schedules by forecasters, means of one study",
    "frozen.csv": "gates beside their frozen schedules",
    "replay.csv": "what traces foretell of a table",
    "flux_harness.csv": "times of the harness beside a plain pipeline",
    "methods.csv": "computed memory and operations, for the question which method fits",
}


@dataclass
class Entry:
    """A row of the leaderboard.

    Attributes:
        file: its CSV file, by the path from the folder that holds results/.
        name: what tells it from the others of its table, as the command names it.
        about: forecaster, schedule and site, as the table has them.
        speedup: against the reference of its table; measured, or printed in a paper.
        scores: metric -> mean and interval.
        beaten_by: metric -> rows of the same table, by their place in it, that are better by more than chance; None
            where the data cannot tell.
    """

    file: str
    model: str
    name: str
    algo: str
    about: str
    role: str
    status: str
    command: str
    steps: float | None = None
    passes: float | None = None
    samples: int | None = None
    speedup: Bounds | None = None
    scores: dict[str, Bounds] = field(default_factory=dict)
    beaten_by: dict[str, list[int]] | None = None
    withdrawn: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass
class Results:
    """All rows of a folder, and the CSV files without rows: path -> what is in it."""

    entries: list[Entry]
    others: dict[str, str]
    models: dict[str, dict[str, str]]


def read(folder: Path) -> Results:
    """The rows of all CSV files in a folder and its subfolders.

    Raises:
        UserError: there is no row, or a file is damaged.
    """
    home = folder.resolve()
    told = home / "board.yaml"
    notes: dict[str, Any] = yaml.safe_load(told.read_text(encoding="utf-8")) if told.is_file() else {}
    entries, others = [], {}
    for path in sorted(home.rglob("*.csv")):
        shown = f"{home.name}/{path.relative_to(home).as_posix()}"
        lines = read_lines(path)
        reader = reader_of(path, lines)
        if reader is None:
            others[shown] = NO_ROWS.get(path.name, "not rows of methods")
            continue
        made = Origin(home, path, notes.get("tables", []))
        entries += reader(made, lines)
    if not entries:
        raise UserError(f"no table in {folder}: name a folder that holds table.csv files of src/report.py")
    return Results(entries, others, notes.get("models", {}))


def read_lines(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file by their columns; an empty cell is an empty text.

    Raises:
        UserError: the file is damaged.
    """
    try:
        lines = list(csv.DictReader(read_text(path, TABLE).splitlines(), strict=True))
    except (Damaged, csv.Error) as reason:
        raise UserError(f"{path} is damaged: {reason}") from None
    if any(None in line or None in line.values() for line in lines):
        raise UserError(f"{path} is damaged: a line has more or fewer cells than the first one")
    return lines


@dataclass(frozen=True)
class Origin:
    """A CSV file, and what is known of it."""

    home: Path  # results/
    path: Path
    tables: Sequence[Mapping[str, str]]

    @property
    def file(self) -> str:
        return f"{self.home.name}/{self.path.relative_to(self.home).as_posix()}"

    def known(self) -> dict[str, str]:
        """Model and command of the file, by board.yaml or by where it lies."""
        inside = self.path.relative_to(self.home).as_posix()
        for table in self.tables:
            parts = re.split(r"\{(\w+)\}", table["files"])
            pattern = "".join(f"(?P<{p}>[^/]*?)" if i % 2 else re.escape(p) for i, p in enumerate(parts))
            if found := re.fullmatch(pattern, inside):
                return {key: text.format_map(found.groupdict()) for key, text in table.items() if key != "files"}
        folders = inside.split("/")
        return {"model": folders[1] if len(folders) > 2 else "", "command": self.first_command()}

    def readmes(self) -> Iterator[str]:
        for folder in self.path.parents:
            if (folder / "README.md").is_file():
                yield (folder / "README.md").read_text(encoding="utf-8")
            if folder == self.home:
                return

    def first_command(self) -> str:
        """The first command of the nearest README.md; empty if there is none."""
        for text in self.readmes():
            found = re.search(
                r"(?:^ {4}|`|^)((?:[A-Z]+=\S+ )*(?:bash|python|spectrum-bench) [^`\n]+)", text, re.MULTILINE
            )
            if found:
                return found[1].strip()
        return ""

    def status(self) -> str:
        """`verified by ...`, as a reviewer writes into a README.md, or `as sent`."""
        found = next((m for text in self.readmes() if (m := re.search(r"verified by [^\n`*]+", text))), None)
        return found[0].strip(" .") if found else "as sent"


def reader_of(path: Path, lines: Sequence[Line]) -> Any:
    """The function that reads the rows of a file by its columns; None for a file without rows."""
    columns = set(lines[0]) if lines else set()
    if any(fnmatch(path.name, name) for name in NO_ROWS):
        return None
    if {"role", "experiment", "algo", "passes"} <= columns:
        return from_table
    if {"section", "model", "method", "full_ms"} <= columns:
        return from_gpu
    if {"model", "method", "psnr"} <= columns:
        return from_paper
    if {"row", "passes", "psnr", "model"} <= columns:
        return from_study
    return None


def from_table(made: Origin, lines: Sequence[Line]) -> Iterator[Entry]:
    """The rows of a table.csv of src/report.py, with the ties that prompts.csv beside it tells."""
    known, status = made.known(), made.status()
    scores = made.path.parent / "prompts.csv"
    losses = beaten(lines, read_lines(scores) if scores.is_file() else [], list(METRICS))
    for number, line in enumerate(lines):
        about = [line[key].lstrip("'") for key in ("forecaster", "schedule", "site")]
        yield Entry(
            made.file,
            known.get("model", ""),
            line["experiment"],
            line["algo"],
            " · ".join(part for part in about if part != "-"),
            line["role"],
            "withdrawn" if line.get("withdrawn") else status,
            known.get("command", ""),
            figure(line, "steps"),
            figure(line, "passes"),
            int(line["prompts"]),
            bounds(line, "speedup"),
            {name: found for name in METRICS if (found := bounds(line, name))},
            losses[number],
            line.get("withdrawn", ""),
            facts(line),
        )


def facts(line: Line) -> dict[str, str]:
    """What else a table's line says."""
    texts = {"Device": line.get("device", ""), "Commit": line.get("git_sha", "")}
    latency, cache = figure(line, "latency_s"), figure(line, "cache_bytes")
    if latency is not None:
        texts["Latency"] = f"{latency:.3g} s"
    if cache:
        texts["Cache"] = f"{cache / 2**20:.3g} MiB" if cache >= 2**20 else f"{cache / 2**10:.0f} KiB"
    return {name: text for name, text in texts.items() if text}


def from_gpu(made: Origin, lines: Sequence[Line]) -> Iterator[Entry]:
    """Times of a GPU with random weights: no quality."""
    known, status = made.known(), made.status()
    card = made.path.relative_to(made.home).parts[0].upper()
    for line in lines:
        name = (
            line["method"]
            if line["section"] in (line["model"], line["method"])
            else f"{line['section']}: {line['method']}"
        )
        told = {"Device": f"NVIDIA {card}, random weights: times are the model's, quality is none"}
        told |= {"Computed step": f"{line['full_ms']} ms"} if line["full_ms"] else {}
        told |= {"Skipped step": f"{line['skipped_ms']} ms"} if line["skipped_ms"] else {}
        told |= {"Peak": f"{line['peak_gb']} GB"} if line["peak_gb"] else {}
        told |= {"Replaced": f"by {known['replaced_by']}"} if "replaced_by" in known else {}
        role = "reference" if line["method"].startswith(("nocache", "never")) else "method"
        yield Entry(
            made.file, line["model"], name, line["method"].split("-")[0].split()[0], "random weights", role, status,
            known.get("command", ""), figure(line, "steps"), figure(line, "passes"), None, bounds(line, "speedup"),
            facts=told,
        )  # fmt: skip


def from_paper(made: Origin, lines: Sequence[Line]) -> Iterator[Entry]:
    """Rows as a paper printed them."""
    paper = made.path.parent.name
    words = ("order", "interval", "warmup", "flex", "adaptive", "last_block_only")
    for line in lines:
        constants = ", ".join(f"{word} {line[word]}" for word in words if line.get(word))
        scores: dict[str, Bounds] = {}
        for name in METRICS:
            if (mean := figure(line, PRINTED.get(name, name))) is not None:
                scores[name] = (mean / METRICS[name].factor, None, None)
        speedup, name = figure(line, "speedup"), f"{line['method']} {line.get('nfe') or line.get('budget') or ''}"
        told = {"Latency": f"{line['latency_s']} s"} if line.get("latency_s") else {}
        yield Entry(
            made.file, line["model"], name.strip(), line["method"], constants,
            "reference" if line.get("budget") == "reference" else "method", "cited",
            f"printed in {paper}, {made.path.stem}; not run here", 50.0, figure(line, "nfe"), None,
            None if speedup is None else (speedup, None, None), scores, facts=told,
        )  # fmt: skip


def from_study(made: Origin, lines: Sequence[Line]) -> Iterator[Entry]:
    """A list of rows with means alone."""
    known, status = made.known(), made.status()
    for line in lines:
        scores: dict[str, Bounds] = {
            name: (mean, None, None) for name in METRICS if (mean := figure(line, name)) is not None
        }
        command = known.get("command", "")
        told = {"Lowest PSNR": f"{line['psnr_worst']} dB"} if line.get("psnr_worst") else {}
        yield Entry(
            made.file, line["model"], line["row"], line["row"].split("-")[0], "", "method", status,
            command if "tiny-" in command else f"{command} {line['model']}", 50.0, figure(line, "passes"),
            int(line["n"]), None, scores, facts=told,
        )  # fmt: skip


def figure(line: Line, column: str) -> float | None:
    """The number in a cell; None if it is empty, missing or no number."""
    try:
        value = float(line.get(column) or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def bounds(line: Line, name: str) -> Bounds | None:
    mean = figure(line, name)
    return None if mean is None else (mean, figure(line, f"{name}_low"), figure(line, f"{name}_high"))
