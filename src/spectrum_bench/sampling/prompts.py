"""Prompt lists: text files with one prompt a line, and tables (CSV, TSV, JSON, JSON lines) with a column of prompts.

A line of a .jsonl file may also give what the pipeline takes beside the prompt: see `inputs`.
"""

import codecs
import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrum_bench.checks import brief, whole
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.inputs import Input, inputs_of
from spectrum_bench.sampling.limits import RUN
from spectrum_bench.sampling.reading import Damaged, parse_json, read_bytes
from spectrum_bench.sampling.text import from_cell, printable

# A tokenizer's 77 to 512 tokens are some 2 KB; one line of 10 MB took 107 s of tokenizing a sample.
LONGEST = 2**16  # bytes of a prompt
LARGEST = 2**28  # bytes of a prompt file: some million prompts

# In lower case: DrawBench has "Prompts", PartiPrompts "Prompt", VBench_full_info "prompt_en", COCO "caption".
COLUMNS = ("prompt", "prompts", "prompt_en", "caption")
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # UTF-32's mark begins with UTF-16's

Row = dict[str, Any]  # a row of a table, by column


@dataclass(frozen=True)
class Prompt:
    """The text of one sample, and what the pipeline takes beside it."""

    text: str
    inputs: tuple[Input, ...] = ()
    seed: int | None = None  # None: the run's
    target_caption: str | None = None  # what the sample should show, where the text is an instruction


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, and the hash of all bytes that they were read from, inputs included."""

    lines: tuple[Prompt, ...]
    sha256: str


def read_prompts(path: str | os.PathLike[str], limit: int | None = None) -> list[str]:
    """The texts of a prompt file; see `read_prompt_file`."""
    return [prompt.text for prompt in read_prompt_file(path, limit).lines]


def read_prompt_file(path: str | os.PathLike[str], limit: int | None = None, column: str | None = None) -> Prompts:
    """The first `limit` prompts of a file. Empty ones are left out.

    Args:
        column: the column of a table that holds the prompts; None: the one with a usual name.

    Raises:
        UserError: no such file or no ordinary one, too large, no text, a table that is not recognised, no prompt in
            it, or a seed or an input beside a prompt is missing or wrong.
    """
    path = Path(path)
    try:
        data = read_bytes(path, LARGEST)
    except FileNotFoundError:
        raise UserError(f"no prompt file {path}: give prompt_file=<text file with one prompt a line>") from None
    except Damaged as reason:
        raise UserError(f"prompt file {reason}: name a text file with one prompt a line") from None
    text = decoded(path, data)
    rows = TABLES.get(path.suffix.lower())
    if rows is None:
        found = [Prompt(line) for line in _plain(path, text, column)]
    else:
        found = list(_from_table(path, list(rows(path, text)), column))
    if not found:
        raise UserError(f"{path} holds no prompt: write one a line")
    for index, prompt in enumerate(found):
        if len(prompt.text.encode()) > LONGEST:
            raise UserError(f"{path}: prompt {index} has more than {LONGEST // 1024} KiB: write one prompt a line")
    chosen = tuple(found[:limit])
    beside = "".join(each.sha256 for prompt in chosen for each in prompt.inputs)
    return Prompts(chosen, hashlib.sha256(data + beside.encode()).hexdigest())


def require(prompts: Prompts, needs: Sequence[str], model: str) -> None:
    """Refuse a list without what the model needs beside each prompt.

    Raises:
        UserError: the message names the first such prompt, and the fix.
    """
    for number, prompt in enumerate(prompts.lines, 1):
        for need in set(needs) - {each.name for each in prompt.inputs}:
            raise UserError(
                f"model={model} needs {need} beside each prompt, and prompt {number} has none: take "
                f'prompt_file=<list>.jsonl with lines like {{"prompt": "...", "{need}": "<file>"}}'
            )


def decoded(path: Path, data: bytes) -> str:
    """The text of a prompt file: UTF-8, or what its mark says. Marks at the beginning of lines and control characters
    are removed.

    Raises:
        UserError: it is other bytes. The message names the line and the command that converts it.
    """
    encoding = next((encoding for mark, encoding in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        likely = "cp1252" if _is_cp1252(data) else "latin1"
        raise UserError(
            f"{path} is not {encoding.upper().removesuffix('-SIG')} (line {line}): convert it, "
            f"e.g. iconv -f {likely} -t utf-8"
        ) from None
    lines = [line.removeprefix("\ufeff") for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    whole = "\n".join(lines)
    if "\0" in whole:
        line = whole[: whole.index("\0")].count("\n") + 1
        raise UserError(f"{path} holds a NUL in line {line}: it is no text, or UTF-16 without its mark")
    return printable(whole)


def _is_cp1252(data: bytes) -> bool:
    """Whether the bytes make sense as Windows' Western code page, which has quotes and dashes where latin1 has control
    characters."""
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return any(0x80 <= byte < 0xA0 for byte in data)


def _plain(path: Path, text: str, column: str | None) -> list[str]:
    """The lines of a text file.

    Raises:
        UserError: it looks like a table.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    kind = _kind_of(lines[0]) if lines else None
    if column is not None and kind is None:
        raise UserError(f"prompt_column={brief(column)}: {path} is no table: name it .csv, .tsv, .json or .jsonl")
    if kind is not None:
        raise UserError(f"{path} looks like a table: rename it to {path.stem}{kind}, or give one prompt a line")
    return lines


def _kind_of(line: str) -> str | None:
    """The suffix of the table that begins with this line; None for an ordinary prompt."""
    if line.startswith(("{", "[")):
        try:
            parse_json(line)
        except Damaged:
            return ".json" if line in ("{", "[", "[{") else None
        return ".jsonl"
    for suffix, delimiter in {".csv": ",", ".tsv": "\t"}.items():
        cells = [cell.strip(' "').lower() for cell in line.split(delimiter)]
        if len(cells) > 1 and set(cells) & set(COLUMNS):
            return suffix
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _delimited(delimiter: str) -> Callable[[Path, str], Iterator[Row]]:
    def rows(path: Path, text: str) -> Iterator[Row]:
        try:
            table = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
            ours = "prompt_index" in (table.fieldnames or ())  # prompts.csv of a report
            for row in table:
                yield {key: from_cell(cell) if ours and isinstance(cell, str) else cell for key, cell in row.items()}
        except csv.Error as error:
            raise UserError(f"{path} is no {path.suffix[1:].upper()} file: {error}") from None

    return rows


def _json(path: Path, text: str) -> Iterator[Row]:
    """A list of objects or texts, or an object with one such list ("annotations" in COCO's captions)."""
    try:
        value = parse_json(text)
    except Damaged as reason:
        raise UserError(f"{path}: {reason}") from None
    if isinstance(value, dict):
        value = value["annotations"] if "annotations" in value else next(iter(value.values()), None)
    if not isinstance(value, list):
        raise UserError(f'{path} holds no list of prompts: write [{{"prompt": ...}}, ...]')
    for number, item in enumerate(value, 1):
        yield _row(path, number, item)


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield _row(path, number, parse_json(line))
            except Damaged as reason:
                raise UserError(f"{path}, line {number}: {reason}") from None


def _row(path: Path, number: int, item: object) -> Row:
    if isinstance(item, str):
        return {"prompt": item}
    if not isinstance(item, dict):
        raise UserError(f'{path}: item {number} is no object: write {{"prompt": ...}}')
    return item


TABLES: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".json": _json,
    ".jsonl": _json_lines,
}


def _from_table(path: Path, rows: Sequence[Row], column: str | None) -> Iterator[Prompt]:
    """The prompts of a table. Only JSON lines may give inputs: other lists have columns of those names for other uses.

    Raises:
        UserError: there is no such column or more than one, or a cell of it is no text.
    """
    if not rows:
        return
    name = column if column is not None else _usual_column(path, rows[0])
    for number, row in enumerate(rows, 1):
        text = row.get(name)
        if text is None or not isinstance(text, str):
            shown = "no" if text is None else f"no text as its {brief(text)} as"
            raise UserError(f"{path}: row {number} has {shown} {brief(name)}: it has {_listed(row)}")
        if text.strip():
            lines = path.suffix.lower() == ".jsonl"
            place = f"{path}: row {number}"
            inputs = tuple(inputs_of(row, path.parent, place)) if lines else ()
            seed, caption = (_seed(row, place), _target_caption(row, place)) if lines else (None, None)
            yield Prompt(_one_line(text), inputs, seed, caption)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").strip()


def _seed(row: Row, place: str) -> int | None:
    """The seed that a line gives; None if it gives none. It stays below 2^63 with the samples of a prompt added, as the
    run's own does: torch.Generator takes no more."""
    seed = row.get("seed")
    return None if seed is None else whole(f"{place}: seed", seed, 0, 2**63 - RUN["samples_per_prompt"][1])


def _target_caption(row: Row, place: str) -> str | None:
    """The caption that a line gives of what should come out; None if it gives none."""
    caption = row.get("target_caption")
    if caption is None:
        return None
    if not (isinstance(caption, str) and caption.strip() and len(caption.encode()) <= LONGEST):
        raise UserError(f"{place}: target_caption is no text of at most {LONGEST // 1024} KiB")
    return _one_line(caption)


def _usual_column(path: Path, row: Row) -> str:
    usual = [key for key in row if isinstance(key, str) and key.strip().lower() in COLUMNS]
    if len(usual) != 1:
        reason = "no column" if not usual else f"{len(usual)} columns"
        raise UserError(f"{path} has {reason} of prompts: name one of {_listed(row)} with prompt_column=")
    return usual[0]


def _listed(row: Row) -> str:
    return ", ".join(brief(str(key)) for key in row)
