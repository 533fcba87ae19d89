"""The ground that attacks are made on: child processes with limits of time and memory."""

import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SECONDS = 10  # of the processor's time
PATIENCE = 60  # seconds on the clock, on a machine that others use too
ROOM = 2 * 2**30  # bytes beyond what the parent has
ACCEPTED = 77  # exit code of a child that went on to its work


@dataclass(frozen=True)
class Outcome:
    """What became of an attack."""

    code: int  # negative: the signal that ended it
    words: str  # what it wrote to stderr
    made: frozenset[str]  # files that were not there before

    @property
    def verdict(self) -> str:
        """refused, or what is wrong."""
        if "Traceback" in self.words or "MemoryError" in self.words:
            return "traceback"
        if self.code < 0:
            return "hang" if -self.code in (signal.SIGKILL, signal.SIGXCPU) else "crash"
        if self.code in (0, ACCEPTED):
            return "accepted"
        lines = self.words.splitlines()
        if self.code != 1 or len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 1500:
            return "unclear"
        return "left something behind" if self.made else "refused"


def files(*folders: Path) -> frozenset[str]:
    paths = (path for folder in folders for path in folder.rglob("*"))
    return frozenset(str(path) for path in paths if not path.is_dir() or path.is_symlink())


def attack(work: Callable[[], object], folder: Path, home: Path | None = None) -> Outcome:
    """Do the work in a child process that stands in `folder`; `home` is watched for new files, beside it."""
    watched = [folder, *([home] if home else [])]
    before = files(*watched)
    with tempfile.TemporaryFile() as errors:
        gc.freeze()  # a collection in the child would copy all that it walks over
        pid = os.fork()
        if not pid:
            _child(work, folder, errors.fileno())
        code = _wait(pid)
        errors.seek(0)
        words = errors.read().decode(errors="replace")
    return Outcome(code, words, files(*watched) - before)


def attack_in_turn(
    works: Mapping[str, Callable[[], object]], folder: Path, homes: Mapping[str, Path] | None = None
) -> dict[str, Outcome]:
    """The outcome of each work. One child does them one after another; where it ends in the middle of one, that one's
    outcome is the child's, and another child does the rest. A work's home is watched for new files, beside `folder`."""
    outcomes: dict[str, Outcome] = {}
    watched = {name: [folder, *([homes[name]] if homes else [])] for name in works}
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as told:
        while left := {name: work for name, work in works.items() if name not in outcomes}:
            end = attack(lambda left=left: _in_turn(left, watched, told.name), folder)
            for name, code, words, made in map(json.loads, told):
                outcomes[name] = Outcome(code, words, frozenset(made))
            unfinished = next((name for name in left if name not in outcomes), None)
            if unfinished is not None:
                outcomes[unfinished] = end
    return outcomes


def _in_turn(works: Mapping[str, Callable[[], object]], watched: Mapping[str, list[Path]], told: str) -> None:
    for name, work in works.items():
        before = files(*watched[name])
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
        _limit_time()
        code = _code(work)
        words = os.pread(2, 2**20, 0).decode(errors="replace")
        with open(told, "a", encoding="utf-8") as file:
            file.write(json.dumps([name, code, words, sorted(files(*watched[name]) - before)]) + "\n")


def _child(work: Callable[[], object], folder: Path, errors: int) -> None:
    code = 99
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
        _limit_time()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = _code(work)
    finally:
        os._exit(code)


def _limit_time() -> None:
    """Give the process SECONDS of the processor's time from now on."""
    spent = int(time.process_time()) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (spent, resource.RLIM_INFINITY))


def _code(work: Callable[[], object]) -> int:
    """The exit code of the work, with what it says written out."""
    try:
        work()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()


def _wait(pid: int) -> int:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL
