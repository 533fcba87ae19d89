"""A report's tables as files (Markdown, LaTeX, CSV, drawings), and as plain text for a terminal.

A new format is one function here, from a Table to the names and contents of files, and its line in FORMATS.
"""

import math
import re
from collections.abc import Callable, Sequence

import pandas as pd
from tabulate import DataRow, TableFormat, tabulate

from spectrum_bench.reporting import cells, frames, notes, plots
from spectrum_bench.reporting.cells import DASH, Cell
from spectrum_bench.reporting.rows import Comparison, Row, Table
from spectrum_bench.sampling.text import to_cell
from spectrum_bench.scoring.metrics import METRICS

Files = dict[str, str | bytes]  # name -> content
PAGE = 24  # rows that fit on a printed page, with the notes


def render(table: Table) -> dict[str, bytes]:
    """The files of all formats: name -> content."""
    files = {name: content for write in FORMATS.values() for name, content in write(table).items()}
    return {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def markdown_files(table: Table) -> Files:
    files: Files = {"table.md": markdown(table)}
    if any(row.latents for row in table.rows):
        files["latents.md"] = latents(table)
    if table.comparison:
        files["differences.md"] = differences(table, table.comparison)
    return files


def markdown(table: Table) -> str:
    marks = cells.marks(table)
    text = pipe_table(cells.frame(table).map(lambda cell: md_cell(cell, marks)), text_columns=3)
    footnotes = [f"<sup>{mark}</sup> {md(reason)}" for reason, mark in marks.items()]
    footnotes += [BLOCK.sub(r"\1\\\2", md(note)) for note in table.notes]
    return text + "\n\n" + "\n".join(f"- {note}" for note in footnotes) + "\n"


def differences(table: Table, comparison: Comparison) -> str:
    """Markdown: every method's difference from the baseline."""
    titles = [f"Difference from {md(comparison.baseline.name)}", "Passes", *(METRICS[m].title for m in table.metrics)]
    compared = cells.differences(table, comparison)
    lines = [[md(row.name), row.passes, *(md_cell(cell) for cell in line)] for row, line in compared]
    return f"{pipe_table(pd.DataFrame(lines, columns=titles))}\n\n{notes.DIFFERENCES}\n"


def latents(table: Table) -> str:
    """Markdown: RMSE of the latents after every tenth step and the last one."""
    pairs = [(row, row.latents) for row in table.rows if row.latents]
    last = max(len(errors) for _, errors in pairs)
    steps = [*range(10, last, 10), last]
    lines = [
        [md(row.name), row.passes, *(f"{errors[s - 1]:.4f}" if s <= len(errors) else DASH for s in steps)]
        for row, errors in pairs
    ]
    text = pipe_table(pd.DataFrame(lines, columns=["Latents' RMSE after step", "Passes", *map(str, steps)]))
    return f"{text}\n\n{notes.latents(row.digest.latents.prompts for row, _ in pairs if row.digest.latents)}\n"


def pipe_table(frame: pd.DataFrame, text_columns: int = 1) -> str:
    """A data frame of strings as a Markdown table; columns after the first `text_columns` are aligned to the right."""

    def rule(widths: Sequence[int], aligns: Sequence[str]) -> str:
        return "|" + "|".join("---" if i < text_columns else "--:" for i in range(len(widths))) + "|"

    # tabulate's own pipe format pads every cell to its column's width, which is some hundred characters for each row
    # here
    line = DataRow("| ", " | ", " |")
    layout = TableFormat(None, rule, None, None, line, line, padding=0, with_header_hide=None)
    text = frame.to_markdown(index=False, tablefmt=layout, disable_numparse=True, stralign=None)
    return str(text)


def md_cell(cell: Cell, marks: dict[str, str] | None = None) -> str:
    body = (f"**{md(cell.text)}**" if cell.bold else md(cell.text)) + notes.FRONT * cell.front
    mark = (marks or {}).get(cell.reason or "")
    return body + (f" <sub>{md(cell.small)}</sub>" if cell.small else "") + (f"<sup>{mark}</sup>" if mark else "")


BLOCK = re.compile(r"^(\d*)([#+.)=-])")  # what would begin a heading or a list in a line of its own


def md(text: str) -> str:
    """Escape text for Markdown, which tabulate does not do."""
    return re.sub(r"([\\`*_|\[\]<>$&~])", r"\\\1", " ".join(text.split()))


# ---------------------------------------------------------------------------------------------------------------------
# CSV


def csv_files(table: Table) -> Files:
    files: Files = {"table.csv": csv(frames.results(table)), "prompts.csv": csv(frames.prompts(table), "%.6g")}
    if table.comparison:
        files["differences.csv"] = csv(frames.differences(table.comparison))
    return files


def csv(frame: pd.DataFrame, numbers: str | None = None) -> str:
    """A data frame as CSV, without its index. A missing number is blank, and no text is a formula.

    Args:
        numbers: the format of numbers that are no integers; None: all digits.
    """
    texts = frame.map(lambda value: to_cell(value) if isinstance(value, str) else value)
    return str(texts.to_csv(index=False, lineterminator="\n", float_format=numbers))


# ---------------------------------------------------------------------------------------------------------------------
# LaTeX


def latex(table: Table) -> str:
    """A table* with booktabs, narrow enough for a page of text. Each row has a second line of small print: below the
    method's name its schedule and granularity, and below the figures their intervals. The other formats hold the
    methods' arguments."""
    marks = cells.marks(table)
    titles = pd.MultiIndex.from_tuples([_tex_title(title) for title in ["Method", *cells.head(table)[3:]]])
    lines = [_tex_lines(row, line, marks) for row, line in zip(table.rows, cells.body(table), strict=True)]
    size = math.ceil(len(lines) / math.ceil(len(lines) / PAGE))
    parts = [lines[start : start + size] for start in range(0, len(lines), size)]
    tabulars = [_tabular(pd.DataFrame([line for pair in part for line in pair], columns=titles)) for part in parts]
    footnotes = [rf"\textsuperscript{{{mark}}} {_tex(reason)}" for reason, mark in marks.items()]
    footnotes += map(_tex, table.notes)
    below = "\n".join([r"\par\smallskip\scriptsize\raggedright", "\n\n".join(footnotes), ""])
    floats = [_float(tabular, below if i == len(parts) else "") for i, tabular in enumerate(tabulars, 1)]
    return "\n".join(["% needs \\usepackage{booktabs,graphicx}", *floats])


def _tabular(frame: pd.DataFrame) -> str:
    # Strings are already escaped: pandas does not escape what pdflatex cannot set, or a "[" after the end of a line.
    style = frame.style.hide(axis="index")
    columns = "l" + "r" * (len(frame.columns) - 1)
    return str(style.to_latex(column_format=columns, hrules=True, sparse_columns=False))


def _float(tabular: str, below: str) -> str:
    before = [r"\begin{table*}", r"\centering\setlength{\tabcolsep}{4pt}\renewcommand{\arraystretch}{0.85}"]
    return "\n".join([*before, r"\resizebox{\linewidth}{!}{%", tabular.rstrip() + "}", below + r"\end{table*}", ""])


def _tex_title(title: str) -> tuple[str, str]:
    """The two lines of a column's title."""
    first, _, rest = title.partition(" ")
    return _tex(first), _tex(rest)


def _tex_lines(row: Row, line: list[Cell], marks: dict[str, str]) -> tuple[list[str], list[str]]:
    """The two lines of a row: the figures, and their small print."""
    _, schedule, site, *figures = line
    setup = [schedule.text, site.text] if row.role == "method" else []
    below = ", ".join(filter(None, [*setup, cells.runtime(row)]))
    small = [rf"\scriptsize {_tex(words)}" if words else "" for words in (below, *(cell.small for cell in figures))]
    strut = r"\rule{0pt}{2.6ex}"  # more space between rows than between the lines of one
    return [strut + _tex(row.name), *(_tex_figure(cell, marks) for cell in figures)], small


def _tex_figure(cell: Cell, marks: dict[str, str]) -> str:
    body = (rf"\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)) + _tex(notes.FRONT) * cell.front
    mark = marks.get(cell.reason or "")
    return body + (rf"\textsuperscript{{{mark}}}" if mark else "")


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", DASH: "---", "×": r"$\times$"}
TEX |= {notes.FRONT: r"\textdagger{}"}
TEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
TEX |= {c: rf"\{c}" for c in "&%$#_{}"}
# Characters that need no package.
PLAIN = {*map(chr, [*range(0x20, 0x7F), *range(0xA1, 0x100)]), *"–‘’“”…€"} - {*"«»ÐÞðþ"}
TEX |= {"[": "{[}", "]": "{]}"}  # otherwise "\\ [" would begin an optional argument


def _tex(text: str) -> str:
    """Escape text for LaTeX. A character that pdflatex cannot set without further packages becomes its code point."""
    text = " ".join(text.split())
    return "".join(TEX.get(c, c if c in PLAIN else rf"\texttt{{U+{ord(c):04X}}}") for c in text)


# ---------------------------------------------------------------------------------------------------------------------
# Terminal


def plain(table: Table) -> str:
    """For a terminal: aligned columns, short; a star marks what is bold elsewhere, intervals stand for PSNR alone. Of
    samples that other code made, columns that say nothing are left out."""
    shown = cells.told(table) if all(row.elsewhere for row in table.rows) else cells.frame(table)
    titles, marks = list(shown), cells.marks(table, shown)
    psnr = titles.index(METRICS["psnr"].title) if "psnr" in table.metrics else None

    def text(i: int, cell: Cell) -> str:
        small = f" {cell.small}" if i == psnr and cell.small else ""
        mark = marks.get(cell.reason or "")
        return cell.text + "*" * cell.bold + notes.FRONT * cell.front + small + (f" ({mark})" if mark else "")

    lines = [[text(i, cell) for i, cell in enumerate(line)] for line in shown.to_numpy().tolist()]
    lines = [titles, *([row.name, *line[1:]] for row, line in zip(table.rows, lines, strict=True))]
    lines = [[" ".join(words.split()) for words in line] for line in lines]
    # the titles are passed as a row, because tabulate makes columns two letters wider than headers
    head, *rows = tabulate(lines, tablefmt="plain", disable_numparse=True).splitlines()
    rule = "-" * max(map(len, [head, *rows]))
    footnotes = [*(f"({mark}) {reason}" for reason, mark in marks.items()), *table.notes]
    return "\n".join(
        [head, rule, *rows, "", *(" ".join(note.split()).replace(", bold: ", ", *: ") for note in footnotes)]
    )


FORMATS: dict[str, Callable[[Table], Files]] = {
    "markdown": markdown_files,
    "csv": csv_files,
    "latex": lambda table: {"table.tex": latex(table)},
    "plots": plots.files,
}
