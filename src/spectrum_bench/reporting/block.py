"""A table for the description of a pull request: short, with what a reviewer asks for below it."""

from spectrum_bench.reporting import cells, formats
from spectrum_bench.reporting.cells import DASH
from spectrum_bench.reporting.rows import Table
from spectrum_bench.sampling.text import printable
from spectrum_bench.version import __version__


def block(table: Table, command: str) -> str:
    """Markdown: the table without columns that say nothing, the notes folded away, and the command."""
    full = cells.frame(table)
    empty = [title for title in full if all(cell.text in (DASH, "-", "none") for cell in full[title])]
    frame = full.drop(columns=empty).map(lambda cell: formats.md_cell(cell))
    marks = [reason for title in full.drop(columns=empty) for cell in full[title] if (reason := cell.reason)]
    notes = [*dict.fromkeys(f"A dash: {reason}." for reason in marks), *table.notes]
    plain = printable(command).replace("`", "'")
    return "\n".join(
        [
            formats.pipe_table(frame, text_columns=1),
            "",
            "<details><summary>How it was measured</summary>",
            "",
            *(f"- {formats.md(note)}" for note in notes),
            "",
            f"`{plain}` (spectrum-bench {__version__})",
            "",
            "</details>",
        ]
    )
