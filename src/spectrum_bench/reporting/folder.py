"""A folder of files that is replaced as a whole or not at all."""

import ctypes
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from spectrum_bench.sampling.records import write_atomically

# The names of a report's files. When a report is replaced, these files of the old report are removed; all others stay.
REPORT = re.compile(
    r"(table|prompts|plot|latents|differences|statistics|categories|figure|paper|index)\.(md|csv|tex|png|svg|html)"
)
PART = re.compile(r"\..*\.part")  # the partial file of a process that died
EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
HERE = -100  # AT_FDCWD
STAGE = ".new"  # a folder in `out` for files that cannot be exchanged as a whole


def replace_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Put a report's files into a folder. Even if the process dies, the folder holds either the old report or the new
    one: the new folder is made beside the old one, and the two are exchanged in one operation. Other files stay.

    A folder that holds folders, or that is the working directory, is not exchanged. Its files are replaced one by one.

    Raises:
        OSError: the folder cannot be written. It has not changed then.
    """
    out = Path(os.path.realpath(out))
    shutil.rmtree(out / STAGE, ignore_errors=True)  # a process that died left it
    if _is_moved(out):
        stage = out.with_name(f".{out.name}.new")
        shutil.rmtree(stage, ignore_errors=True)  # a process that died left it
        try:
            _fill(stage, out, files)
            if not out.exists():
                stage.rename(out)
                return
            if _exchange(stage, out):
                return
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    _replace_files(out, files)


def _replace_files(out: Path, files: Mapping[str, bytes]) -> None:
    """Write all files before the first one takes its place, because a full disk refuses to write, not to rename."""
    stage = out / STAGE
    try:
        _write(stage, files)
        for name in files:
            (stage / name).replace(out / name)
        for entry in list(out.iterdir()):
            if entry.name not in files and REPORT.fullmatch(entry.name):
                entry.unlink()
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write(stage: Path, files: Mapping[str, bytes]) -> None:
    stage.mkdir(parents=True)
    for name, data in files.items():
        write_atomically(stage / name, data)


def _is_moved(out: Path) -> bool:
    """Whether the folder can be exchanged with another one without a side effect."""
    if not out.exists():
        return True
    here = Path.cwd()
    plain = out.is_dir() and not any(entry.is_dir() for entry in out.iterdir())
    writable = os.access(out, os.W_OK) and os.access(out.parent, os.W_OK)
    return plain and writable and out not in (here, *here.parents) and not os.path.ismount(out)


def _fill(stage: Path, out: Path, files: Mapping[str, bytes]) -> None:
    """Fill the new folder with the files, and with files of the old folder that do not belong to a report."""
    _write(stage, files)
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
    """Exchange two folders in one operation. Returns False if the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # only Linux has it
    if rename is None:
        return False
    return bool(rename(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0)
