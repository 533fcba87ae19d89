"""Command lines of the form `folder folder key=value`."""

import difflib
import os
from pathlib import Path

from spectrum_bench.errors import UserError


def parse(
    argv: list[str], usage: str, defaults: dict[str, str | None], folderless: bool = False
) -> tuple[list[Path], dict[str, str]]:
    """The folders and the options in `argv`. A key whose default is None is required.

    Args:
        folderless: the command takes options alone, and their values are no paths.

    Raises:
        UserError: there is no folder, a key is unknown or missing, or a value is empty.
    """
    if {"-h", "--help"} & set(argv):
        print(usage.strip())
        raise SystemExit(0)
    known = ", ".join(f"{key}=" for key in defaults)
    folders: list[Path] = []
    options = dict(defaults)
    for argument in argv:
        if not folderless:
            check_length(argument)
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):
            raise UserError(
                f"no option {argument[:80]}: give {'' if folderless else 'folders and '}{known} (see --help)"
            )
        if folderless and not equals:
            raise UserError(f"'{argument[:80]}' is not key=value: give {known} (see --help)")
        if not equals or not folderless and Path(argument).is_dir():  # a sweep may name its folders algo=spectrum
            folders.append(Path(argument))
        elif key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}={value}?" if near else f"there is {known} (see --help)"
            raise UserError(f"no key {key}: {hint}")
        elif not value:
            raise UserError(f"{key}= has no value: write {key}=<value>")
        else:
            options[key] = value
    missing = [key for key, value in options.items() if value is None]
    if not folders and not folderless:
        raise UserError("no experiment directory given: name at least one (see --help)")
    if missing:
        raise UserError(
            f"{missing[0]}= is missing: add {missing[0]}=<{'value' if folderless else 'folder'}> (see --help)"
        )
    return folders, {key: str(value) for key, value in options.items()}


def check_length(argument: str) -> None:
    """Refuse what no file system takes for a path.

    Raises:
        UserError: a name in it is too long.
    """
    if len(argument) > 4000 or max(len(os.fsencode(part)) for part in argument.split("/")) > 240:
        raise UserError(f"{argument[:80]}... is too long: use names of at most 200 characters")


def count(key: str, value: str) -> int:
    """The value of an option as a number of prompts, at least 1.

    Raises:
        UserError: the value is no whole number.
    """
    if not (value.isascii() and value.isdecimal() and len(value) <= 6) or int(value) < 1:
        raise UserError(f"{key}={value} is no number of prompts: write {key}=16")
    return int(value)


def nearest(name: str, names: list[str]) -> str:
    """ " (did you mean ...?)" with the name that is nearest, or nothing."""
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f" (did you mean {close[0]}?)" if close else ""
