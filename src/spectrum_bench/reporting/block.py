"""A table for the description of a pull request: short, with what a reviewer asks for below it."""

from collections.abc import Mapping

from spectrum_bench.reporting import cells, formats
from spectrum_bench.reporting.rows import Table
from spectrum_bench.sampling.text import printable
from spectrum_bench.version import __version__


def block(table: Table, command: str, versions: Mapping[str, str]) -> str:
    """Markdown: the table without columns that say nothing, the notes folded away, and the command.

    Args:
        versions: of what scored the samples, by package.
    """
    shown = cells.told(table)
    frame = shown.map(lambda cell: formats.md_cell(cell))
    notes = [*(f"A dash: {reason}." for reason in cells.marks(table, shown)), *table.notes]
    plain = printable(command).replace("`", "'")
    return "\n".join(
        [
            formats.pipe_table(frame, text_columns=1),
            "",
            "<details><summary>How it was measured</summary>",
            "",
            *(f"- {formats.md(note)}" for note in notes),
            "",
            f"`{plain}` (spectrum-bench {__version__}, {formats.md(', '.join(map(' '.join, versions.items())))})",
            "",
            "</details>",
        ]
    )
