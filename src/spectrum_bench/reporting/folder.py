"""A folder of files that is replaced as a whole or not at all."""

import ctypes
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from spectrum_bench.sampling.records import write_atomically

# What a report may consist of: of an older report that is replaced, these go; all other files stay.
REPORT = re.compile(r"(table|prompts|plot|latents|differences|figure|paper|index)\.(md|csv|tex|png|svg|html)")
PART = re.compile(r"\..*\.part")  # half a file of a process that died
EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
HERE = -100  # AT_FDCWD


def replace_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Put a report's files into a folder. Whenever the process dies, the folder holds the old report or the new one:
    the new one is made beside it, and both change places at once. Files that are no report's stay.

    A folder that holds folders, or in which the process stands, is not moved: there the files come one by one.

    Raises:
        OSError: it cannot be written; then nothing of it has changed, but in a folder that is not moved.
    """
    out = Path(os.path.realpath(out))
    if _is_moved(out):
        stage = out.with_name(f".{out.name}.new")
        shutil.rmtree(stage, ignore_errors=True)  # of one that died
        try:
            _fill(stage, out, files)
            if not out.exists():
                stage.rename(out)
                return
            if _exchange(stage, out):
                return
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    for name, data in files.items():
        write_atomically(out / name, data)


def _is_moved(out: Path) -> bool:
    """Whether the folder can change places with another one, unnoticed by anybody."""
    if not out.exists():
        return True
    here = Path.cwd()
    plain = out.is_dir() and not any(entry.is_dir() for entry in out.iterdir())
    writable = os.access(out, os.W_OK) and os.access(out.parent, os.W_OK)
    return plain and writable and out not in (here, *here.parents) and not os.path.ismount(out)


def _fill(stage: Path, out: Path, files: Mapping[str, bytes]) -> None:
    """The new folder: the files, and of the old folder those that are no report's."""
    stage.mkdir(parents=True)
    for name, data in files.items():
        write_atomically(stage / name, data)
    if not out.exists():
        return
    shutil.copymode(out, stage)
    for entry in out.iterdir():
        if entry.name not in files and not REPORT.fullmatch(entry.name) and not PART.fullmatch(entry.name):
            _keep(entry, stage / entry.name)


def _keep(entry: Path, place: Path) -> None:
    try:
        os.link(entry, place, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(entry, place, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places at once; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # of Linux
    if rename is None:
        return False
    return bool(rename(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0)
