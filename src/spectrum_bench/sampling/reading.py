"""Reads files that other people may have made: ordinary files of bounded size, whose values have the expected types.

Any other file raises Damaged, whose message is one line for a person.
"""

import json
import math
import os
import stat
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

import yaml

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.text import cleaned, is_printable

RECORD = 2**20  # bytes of a JSON file of one sample or one model: a prompt of 64 KiB and a thousand steps fit
CONFIG = 2**18  # bytes of a config.yaml, which has some 5 KB and which PyYAML reads at 200 KB/s
TABLE = 2**30  # bytes of records.jsonl and metrics.csv: a million samples
TEXT = 2**16  # characters of one text
NUMBER = 2.0**64  # larger than any count, time or seed

Kind = TypeVar("Kind")
KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class Damaged(UserError):
    """A file does not have the expected form."""


def check_file(path: Path, most: int) -> None:
    """Refuse anything but an ordinary file of at most `most` bytes. A pipe would block, a device never ends, and
    neither can be read twice.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: the file is not ordinary, or too large.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for fits, name in KINDS if fits(status.st_mode)), "a device")
        raise Damaged(f"{path} is {kind}, not an ordinary file")
    if status.st_size > most:
        raise Damaged(f"{path} has more than {most:,} bytes")


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of an ordinary file.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: the file is not ordinary, cannot be read, or has more than `most` bytes.
    """
    check_file(path, most)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            data = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)  # so much memory is taken at once
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise Damaged(f"{path} has more than {most:,} bytes")
    return data


def read_text(path: Path, most: int) -> str:
    """The text of an ordinary file in UTF-8.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: the file is not UTF-8, or `read_bytes` refuses it.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged(f"{path} is not UTF-8") from None


def read_lines(path: Path, most: int) -> Iterator[str]:
    """The lines of an ordinary file in UTF-8, one at a time, without their ends.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: a line is not UTF-8, the file is not ordinary, cannot be read, or has more than `most` bytes.
    """
    check_file(path, most)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            for line in file:
                yield line.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise Damaged(f"{path} is not UTF-8") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None


def parse_json(text: str) -> Any:
    """A JSON value without NaN, infinities and repeated keys. Control characters in its texts are removed.

    Raises:
        Damaged: it is no such value. The message continues a sentence that begins with the file's name.
    """
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_unique)
        return value if "\\" not in text and is_printable(text) else cleaned(value)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"no JSON: {str(error)[:80]}") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = {sys.intern(name): value for name, value in pairs}  # a million records would hold a million of each name
    if len(made) < len(pairs):
        raise ValueError("a key stands there twice")
    return made


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml ships no types
    """YAML without aliases. With aliases ten lines can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def parse_yaml(text: str) -> Any:
    """A YAML value. Control characters in its texts are removed.

    Raises:
        Damaged: it is none, or has aliases; the message goes on from the file's name.
    """
    try:
        value = yaml.load(text, _Loader)
        json.dumps(value, ensure_ascii=False, default=str).encode()  # half a surrogate pair cannot be printed
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        raise Damaged(f"is not YAML ({' '.join(str(error).split())[:80]})") from None
    return cleaned(value)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(value: Any) -> str:
    """YAML that `parse_yaml` reads. A value that occurs twice is written twice, because aliases are refused."""
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Types


def typed(kind: type[Kind], value: Any) -> Kind:
    """The dataclass `kind` from a JSON object, every field checked by its annotation.

    Raises:
        Damaged: a field is missing, unknown or of another type; the message goes on from the file's name.
    """
    if not isinstance(value, dict):
        raise Damaged("it is no object")
    if wrong := next(_misfits_of(value, _hints(cast(Hashable, kind)), _required(cast(Hashable, kind)), ""), None):
        raise Damaged(wrong)
    return kind(**value)


def check(hint: Any, value: Any) -> None:
    """Refuse a value of another type. Types are numbers, texts, lists, dicts, unions and TypedDicts.

    Raises:
        Damaged: it is not; the message goes on from the file's name.
    """
    if wrong := next(misfits(value, hint, ""), None):
        raise Damaged(wrong)


def misfits(value: Any, hint: Any, name: str) -> Iterator[str]:
    """The parts of a value that have a wrong type, each in words like `latency.total is null`."""
    if hint in PLAIN:
        if not PLAIN[hint](value):
            yield f"{name or 'it'} is {shown(value)}"
        return
    if hint is Any:
        return
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if all(next(misfits(value, each, name), None) for each in arguments):
            yield from misfits(value, arguments[0], name)
    elif is_typeddict(hint) and isinstance(value, dict):
        yield from _misfits_of(value, _hints(hint), hint.__required_keys__, f"{name}." if name else "")
    elif origin is list and isinstance(value, list):
        if arguments[0] not in PLAIN or not all(map(PLAIN[arguments[0]], value)):
            for i, each in enumerate(value):
                yield from misfits(each, arguments[0], f"{name}[{i}]")
    elif origin is dict and isinstance(value, dict):
        for key, each in value.items():
            yield from misfits(key, arguments[0], f"a key of {name}")
            yield from misfits(each, arguments[1], f"{name}.{str(key)[:40]}")
    else:
        yield f"{name or 'it'} is {shown(value)}"


def _misfits_of(
    value: dict[Any, Any], hints: Mapping[str, Any], required: frozenset[str], prefix: str
) -> Iterator[str]:
    yield from (f"{prefix}{name} is missing" for name in sorted(required - value.keys()))
    yield from (f"there is no {prefix}{str(name)[:40]}" for name in value if name not in hints)
    for name, each in value.items():
        yield from misfits(each, hints[name], f"{prefix}{name}")


def shown(value: Any) -> str:
    """A value in few words."""
    text = "null" if value is None else f"a {type(value).__name__}" if isinstance(value, (dict, list)) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _required(kind: Any) -> frozenset[str]:
    return frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > TEXT:
        return False
    try:
        value.encode()  # half a surrogate pair can be neither printed nor written
    except UnicodeEncodeError:
        return False
    return True


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < NUMBER


def _is_number(value: Any) -> bool:
    return _is_whole(value) or type(value) is float and math.isfinite(value)


PLAIN: dict[Any, Callable[[Any], bool]] = {
    str: _is_text,
    int: _is_whole,
    float: _is_number,
    bool: lambda value: isinstance(value, bool),
    NoneType: lambda value: value is None,
}


def tensor_names(path: Path, key: str) -> list[str]:
    """The names of the tensors in a .safetensors file, of which the header alone is read.

    Args:
        key: the setting that names the file, for the message.

    Raises:
        Damaged: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{key}: {path} is damaged ({error}): fetch it again") from None
