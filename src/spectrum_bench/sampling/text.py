"""Text from outside (prompts, names, notes, received records) that is safe to print, and to open in a spreadsheet."""

import re
from collections.abc import Mapping
from typing import Any

# C0 but tab and line feed, DEL, C1, and code points that are no characters and may stand in neither HTML nor XML. A
# terminal obeys the control characters, a browser and an XML parser refuse the others.
NOT_PRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
# A spreadsheet takes a cell that begins so for a formula; in East Asian settings also with the wide forms of the signs.
FORMULA = re.compile("'*[=+@\t\r\n\uff0b\uff0d\uff1d\uff20-]")
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)


def is_printable(text: str) -> bool:
    """Whether the text has no control characters but tabs and line feeds."""
    return NOT_PRINTABLE.search(text) is None


def printable(text: str) -> str:
    """The text without control characters. Tabs and line feeds stay."""
    return NOT_PRINTABLE.sub("", text)


def cleaned(value: Any) -> Any:
    """A value of JSON or YAML, all of its texts and keys printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(each) for key, each in value.items()}
    return [cleaned(each) for each in value] if isinstance(value, list) else value


def to_cell(text: str) -> str:
    """A text for a cell of a CSV file: one that a spreadsheet would take for a formula gets a quote in front, which
    `from_cell` takes away again. Numbers stay as they are."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """The text of a cell that `to_cell` has written."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
