"""A table's rows as text: Markdown, LaTeX, CSV, and plain for a terminal."""

import csv
import io
import math
import re
from dataclasses import dataclass

from spectrum_bench.reporting.comparisons import Difference
from spectrum_bench.reporting.tables import Row, Table
from spectrum_bench.scoring.metrics import METRICS

DASH = "—"
PAGE = 24  # rows that fit a printed page, with the notes
BEFORE, AFTER = ("Method", "Schedule", "Granularity", "Passes", "Latency s", "Speedup"), ("Skipped step ms", "Cache")


@dataclass(frozen=True)
class Cell:
    text: str
    small: str = ""
    bold: bool = False
    note: str | None = None  # why there is no number
    value: float | None = None  # to sort by


def head(table: Table) -> list[str]:
    return [*BEFORE, *(METRICS[name].title for name in table.metrics), *AFTER]


def body(table: Table) -> list[list[Cell]]:
    return [cells(row, table.metrics) for row in table.rows]


def cells(row: Row, metrics: list[str]) -> list[Cell]:
    """One table row, in the order of `head`."""
    f = row.figures

    def number(key, form, small=""):
        return Cell(form(f[key]), small, value=f[key]) if f[key] is not None else Cell(DASH, note=row.reasons[key])

    def score(name):
        k, digits = METRICS[name].factor, METRICS[name].digits
        low, high = f[f"{name}_low"], f[f"{name}_high"]
        small = f"[{k * low:.{digits}f}, {k * high:.{digits}f}]" if low is not None else ""
        cell = number(name, lambda v: f"{k * v:.{digits}f}", small)
        return Cell(cell.text, cell.small, f[f"{name}_best"], cell.note, cell.value)

    def seconds(v):
        return f"{v:.2f}" if v >= 10 else f"{v:.3f}"

    low, high = f.get("speedup_low"), f.get("speedup_high")
    speedups = f"[{low:.2f}, {high:.2f}]" if low is not None and row.role != "reference" else ""
    peak = f"GPU peak {_bytes(f['peak_memory_bytes'])}" if f["peak_memory_bytes"] else ""
    name = {"reference": "reference", "noise floor": "reference re-run (noise floor)"}.get(row.role)
    share = f"{100 * f['skipped_step_s'] / f['full_step_s']:.0f} %" if f["skipped_step_s"] is not None else ""
    detail = "" if f["forecaster"] in ("-", f["algo"]) or name else f["forecaster"]
    (schedule, _, arguments), (site, _, sites) = (f[key].partition("(") for key in ("schedule", "site"))
    return [
        Cell(name or f["algo"], ", ".join(filter(None, [f["algo"] if name else detail, _runtime(row)]))),
        Cell(schedule, arguments.removesuffix(")")),
        Cell("none" if f["site"] == "-" else site, sites.removesuffix(")")),
        Cell(row.passes, value=f["passes"]),
        number("latency_s", seconds, f"p90 {seconds(f['latency_p90_s'])}" if f["latency_p90_s"] is not None else ""),
        number("speedup", lambda v: f"{v:.2f}×", speedups),
        *(score(name) for name in metrics),
        number("skipped_step_s", lambda v: f"{1e3 * v:.2f}", share),
        Cell(_bytes(f["cache_bytes"]), peak, value=f["cache_bytes"]),
    ]


def markdown(table: Table) -> str:
    lines, reasons = _marked(table, _md_cell)
    titles = head(table)
    rule = "|".join(["---"] * 3 + ["--:"] * (len(titles) - 3))
    lines = [f"| {' | '.join(titles)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines), ""]
    notes = [*(f"<sup>{mark}</sup> {_md(reason)}" for mark, reason in reasons), *map(_md, table.notes)]
    return "\n".join(lines) + "\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def difference_cells(table: Table, differences: list[Difference]) -> list[tuple[Row, list[Cell]]]:
    """A row a method, a cell a metric: mean difference, interval, corrected p, wins; bold if more than chance."""
    out = []
    for row in table.rows:  # two may have one name
        if mine := {d.metric: d for d in differences if d.row is row}:
            out.append((row, [_difference(mine.get(name), name) for name in table.metrics]))
    return out


def _difference(d: Difference | None, name: str) -> Cell:
    if d is None:
        return Cell(DASH)
    k, digits = METRICS[name].factor, METRICS[name].digits
    interval = f"[{k * d.low:+.{digits}f}, {k * d.high:+.{digits}f}], " if d.low is not None else ""
    small = f"{interval}p {d.p_holm:.2g}, wins {100 * d.wins:.0f} %"
    real = d.verdict in ("better", "worse")
    return Cell(f"{k * d.mean:+.{digits}f}" + ("" if real else f" ({d.verdict})"), small, real, value=d.mean)


def differences(table: Table, baseline: Row, found: list[Difference]) -> str:
    """Markdown: every method's difference from the baseline."""
    titles = " | ".join(METRICS[name].title for name in table.metrics)
    lines = [f"| Difference from {_md(baseline.name)} | Passes | {titles} |"]
    lines.append("|---|--:|" + "--:|" * len(table.metrics))
    for row, cells in difference_cells(table, found):
        lines.append(f"| {_md(row.name)} | {row.passes} | {' | '.join(map(_md_cell, cells))} |")
    return "\n".join(lines) + f"\n\n{DIFFERENCES}\n"


def latents(table: Table) -> str:
    """Markdown: RMSE of the latents after every tenth step and the last, as in the Spectrum paper's Tables 5 and 8."""
    rows = [row for row in table.rows if row.latents]
    last = max(len(row.latents) for row in rows)
    steps = [*range(10, last, 10), last]
    lines = ["| Latents' RMSE after step | Passes | " + " | ".join(map(str, steps)) + " |"]
    lines.append("|---|--:|" + "--:|" * len(steps))
    for row in rows:
        figures = [f"{row.latents[s - 1]:.4f}" if s <= len(row.latents) else DASH for s in steps]
        lines.append(f"| {_md(row.name)} | {row.passes} | {' | '.join(figures)} |")
    prompts = ", ".join(sorted({str(row.summary["latents"]["prompts"]) for row in rows}))
    return "\n".join(lines) + f"\n\nMean over {prompts} prompts, against the reference's latents after the same step.\n"


DIFFERENCES = (
    "Mean paired difference with its 95 % interval over prompts; p by flipping signs at random, corrected for the "
    "number of methods (Holm) in each metric; share of prompts on which the method wins. Bold: more than chance "
    "(p below 0.05)."
)


def plain(table: Table) -> str:
    """For a terminal: aligned columns, short; a star marks the best, intervals stand for PSNR alone."""
    titles = head(table)

    def text(i, cell, mark):
        small = f" {cell.small}" if titles[i] == METRICS["psnr"].title and cell.small else ""
        return cell.text + "*" * cell.bold + small + (f" ({mark})" if mark else "")

    letters = marks(table)
    lines = [[text(i, c, letters.get(c.note)) for i, c in enumerate(line)] for line in body(table)]
    lines = [titles, *([row.name, *line[1:]] for row, line in zip(table.rows, lines, strict=True))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [*(f"({mark}) {reason}" for reason, mark in letters.items()), *table.notes]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], "", *notes])


def latex(table: Table) -> str:
    """A table* with booktabs, narrow enough for a page of text: methods by name, small below them their schedule and
    granularity, below figures their intervals. What the methods' arguments are is in the other formats."""
    titles = [title.partition(" ") for title in ["Method", *head(table)[3:]]]

    def text(cell, mark):
        body = rf"\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)
        return body + (rf"\textsuperscript{{{mark}}}" if mark else ""), _tex(cell.small)

    lines, reasons = _marked(table, text)
    rows = []
    for row, (_, (schedule, _), (site, _), *figures) in zip(table.rows, lines, strict=True):
        setup = [schedule, site] if row.role == "method" else []
        figures = [(_tex(row.name), ", ".join(filter(None, [*setup, _tex(_runtime(row))]))), *figures]
        small = (rf"\scriptsize {words}" if words else "" for _, words in figures)
        rows.append(" & ".join(body for body, _ in figures) + r" \\[-2pt]" + "\n" + " & ".join(small) + r" \\[1pt]")
    notes = [*(rf"\textsuperscript{{{mark}}} {_tex(reason)}" for mark, reason in reasons), *map(_tex, table.notes)]
    out = ["% needs \\usepackage{booktabs,graphicx}"]
    size = math.ceil(len(rows) / math.ceil(len(rows) / PAGE))
    for start in range(0, len(rows), size):
        out += [
            r"\begin{table*}",
            r"\centering\setlength{\tabcolsep}{4pt}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
            r"\toprule",
            " & ".join(_tex(first) for first, _, _ in titles) + r" \\[-2pt]",
            " & ".join(_tex(rest) for _, _, rest in titles) + r" \\",
            r"\midrule",
            *rows[start : start + size],
            r"\bottomrule",
            r"\end{tabular}}",
            *([r"\par\smallskip\scriptsize\raggedright", "\n\n".join(notes)] if start + size >= len(rows) else []),
            r"\end{table*}",
        ]
    return "\n".join([*out, ""])


def unrounded(table: Table) -> str:
    """CSV, every figure in full: seconds, bytes, dB, shares."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in table.rows for key in row.figures))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.figures.items()} for row in table.rows)
    return text.getvalue()


def marks(table: Table) -> dict[str, str]:
    """Reason for a dash -> footnote mark, in order of appearance."""
    reasons = dict.fromkeys(cell.note for line in body(table) for cell in line if cell.note)
    return {reason: chr(ord("a") + i) for i, reason in enumerate(reasons)}


def _marked(table: Table, text) -> tuple[list[list[str]], list[tuple[str, str]]]:
    letters = marks(table)
    lines = [[text(cell, letters.get(cell.note)) for cell in line] for line in body(table)]
    return lines, [(mark, reason) for reason, mark in letters.items()]


def _runtime(row: Row) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.experiment.runtime.items())


def _bytes(count: int) -> str:
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def _md_cell(cell: Cell, mark: str | None = None) -> str:
    body = f"**{_md(cell.text)}**" if cell.bold else _md(cell.text)
    return body + (f" <sub>{_md(cell.small)}</sub>" if cell.small else "") + (f"<sup>{mark}</sup>" if mark else "")


def _md(text: str) -> str:
    return re.sub(r"([\\`*_|\[\]<>$])", r"\\\1", " ".join(text.split()))


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", DASH: "---", "×": r"$\times$"}
TEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
TEX |= {c: rf"\{c}" for c in "&%$#_{}"}
LATIN = {*map(chr, range(0xA1, 0x100)), *"–‘’“”…€"} - {*"«»ÐÞðþ"}  # these need no package
TEX |= {"[": "{[}", "]": "{]}"}  # else "\\ [" would begin an optional argument


def _tex(text: str) -> str:
    """Text for LaTeX; what pdflatex cannot set without further packages becomes its code point."""
    text = " ".join(text.split())
    return "".join(TEX.get(c, c if c.isascii() or c in LATIN else rf"\texttt{{U+{ord(c):04X}}}") for c in text)
