"""Scores by category of prompts: where a method fails that a mean over all prompts hides."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import formats
from spectrum_bench.reporting.rows import Row, Table
from spectrum_bench.sampling.prompts import COLUMNS, LARGEST, TABLES, decoded
from spectrum_bench.sampling.reading import Damaged, read_bytes
from spectrum_bench.sampling.text import to_cell
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import Estimate, estimate

# In lower case: DrawBench and PartiPrompts have "Category", VBench_full_info "dimension", GenEval "tag".
KINDS = ("category", "categories", "dimension", "tag")
MOST, LONGEST = 100, 200  # categories; characters of one
HOW = "name a .csv, .tsv, .json or .jsonl with a column of prompts and one called category"
LINE = ["metric", "category", "experiment", "passes", "mean", "low", "high", "prompts"]
Categories = Mapping[str, list[str]]  # category -> its prompts, in the order of the file
ABOUT = (
    "Means with 95 % intervals over the category's prompts. A category has few of them, and of so many cells "
    "some differ by chance: take what you find here as a question for more prompts, not as an answer."
)


def read(path: Path) -> Categories:
    """The categories of a list of prompts. A prompt may have several: in several lines, or as a list in JSON.

    Raises:
        UserError: no such file, no table, or a cell is no text.
    """
    rows = TABLES.get(path.suffix.lower())
    if rows is None:
        raise UserError(f"categories={str(path)[:80]} is no table: {HOW}")
    try:
        lines = list(rows(path, decoded(path, read_bytes(path, LARGEST))))
    except FileNotFoundError:
        raise UserError(f"categories={str(path)[:80]}: there is no such file: {HOW}") from None
    except Damaged as reason:
        raise UserError(f"categories=: {reason}: {HOW}") from None
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        cells = {str(key).strip().lower(): value for key, value in line.items()}
        prompt, kinds = (next((cells[key] for key in keys if key in cells), None) for keys in (COLUMNS, KINDS))
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if not isinstance(prompt, str) or not all(isinstance(kind, str) and kind.strip() for kind in kinds):
            raise UserError(f"categories={str(path)[:80]}: row {number} has no prompt or no category: {HOW}")
        for kind in kinds:
            found.setdefault(" ".join(kind.split())[:LONGEST], []).append(" ".join(prompt.split("\n")).strip())
    if not 0 < len(found) <= MOST:
        raise UserError(f"categories={str(path)[:80]} has {len(found)} categories, not 1 to {MOST}: {HOW}")
    return found


def files(table: Table, categories: Categories) -> dict[str, bytes]:
    """categories.md and categories.csv: name -> content. A metric whose samples depend on each other is left out.

    Raises:
        UserError: no prompt of the table has a category.
    """
    prompts = {record.prompt for row in table.methods for record in row.records}
    present = {kind: own for kind, own in categories.items() if prompts.intersection(own)}
    if not present:
        raise UserError(f"categories= names none of the {len(prompts)} prompts: take the list that the samples are of")
    metrics = [metric for metric in table.metrics if not METRICS[metric].pooled]
    text = "\n\n".join([*(section(table, metric, present) for metric in metrics), ABOUT])
    frame = pd.DataFrame(list(lines(table, metrics, present)), columns=LINE, dtype=object)
    return {"categories.md": f"{text}\n".encode(), "categories.csv": formats.csv(frame).encode()}


def section(table: Table, metric: str, categories: Categories) -> str:
    """The Markdown of one metric: a line for each category, a column for each method, the best mean in bold."""
    rows = [row for row in table.methods if metric in row.results]
    columns = ["Category", "Prompts", *(formats.md(f"{row.name} ({row.passes})") for row in rows)]
    body = []
    for kind, prompts in categories.items():
        found = [mean(row, metric, prompts) for row in rows]
        means = [each.mean for each in found if each]
        best = (max if METRICS[metric].higher_is_better else min)(means) if len(rows) > 1 and means else None
        count = max((each.n for each in found if each), default=0)
        body.append((formats.md(kind), str(count), *(cell(each, metric, best) for each in found)))
    return f"## {METRICS[metric].label}\n\n{formats.pipe_table(pd.DataFrame(body, columns=columns))}"


def cell(found: Estimate | None, metric: str, best: float | None) -> str:
    """A mean with its interval, in the metric's digits."""
    if found is None:
        return "—"
    digits, factor = METRICS[metric].digits, METRICS[metric].factor
    text = f"{factor * found.mean:.{digits}f}"
    text = f"**{text}**" if found.mean == best else text
    if found.low is None or found.high is None:
        return text
    return f"{text} <sub>[{factor * found.low:.{digits}f}, {factor * found.high:.{digits}f}]</sub>"


def mean(row: Row, metric: str, prompts: list[str]) -> Estimate | None:
    """A row's mean over the samples of some prompts; None if none of them was scored."""
    chosen = set(prompts)
    samples = zip(row.scores[metric], row.records, strict=True)
    pairs = [(score, record.subject) for score, record in samples if record.prompt in chosen]
    return estimate([score for score, _ in pairs], [subject for _, subject in pairs])


def lines(table: Table, metrics: list[str], categories: Categories) -> Iterator[tuple[object, ...]]:
    """The lines of categories.csv."""
    for metric in metrics:
        for kind, prompts in categories.items():
            for row in table.methods:
                found = mean(row, metric, prompts) if metric in row.results else None
                if found:
                    name = row.experiment.name
                    yield metric, to_cell(kind), name, row.passes, found.mean, found.low, found.high, found.n
