"""How commands end: bad input, a full disk, a closed pipe and signals leave no traceback; a bug keeps its own."""

import errno
import io
import math
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from spectrum_bench.errors import BROKEN_PIPE, INTERRUPTED, UserError
from spectrum_bench.sampling.text import printable

DEBUG = "SPECTRUM_BENCH_DEBUG"  # environment variable: show the traceback of a UserError too
# What the package cannot do without: a Python that lacks one of these is another one than was set up.
NEEDED = {"torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "hydra", "omegaconf"}
NEEDED |= {"ftfy", "numpy", "scipy", "pandas", "tabulate", "matplotlib", "jinja2", "PIL", "imageio", "imageio_ffmpeg"}
NEEDED |= {"yaml", "psutil", "rich"}
SET_UP = "source .venv/bin/activate, which bash scripts/demo.sh makes; elsewhere pip install ."
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IMPATIENCE = 1  # seconds: a signal that comes sooner after the first one is the same wish
# What a disk or its permissions refuse; any other OSError is a bug.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENOTDIR}
DISK |= {errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE, errno.EMFILE, errno.ENFILE}


def run(main: Callable[[list[str]], object]) -> None:
    """Call `main` with the command line, and end the process as it should end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # of a stream that is broken already: its first line will tell
            if isinstance(stream, io.TextIOWrapper):  # a terminal or log that is not UTF-8 shows ? for what it lacks
                stream.reconfigure(errors="replace")
    with stoppable(), one_line():
        main(without_debug(sys.argv[1:]))


@contextmanager
def one_line() -> Iterator[None]:
    """Turn a UserError and an error of the disk into one line and exit code 1, and end quietly where the reader of a
    pipe has gone."""
    try:
        try:
            yield
        except SystemExit:
            print(end="", flush=True)
            raise
        print(end="", flush=True)  # at the interpreter's end an error would be a traceback
    except UserError as error:
        fail(error)
    except BrokenPipeError:
        if not hush():
            raise
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        fail(refusal(error))
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        fail(UserError(f"{error.name} is missing in {sys.executable}: {SET_UP}"))


def refusal(error: OSError) -> UserError:
    """What a disk has refused, in words. Any other error is raised again."""
    if error.errno not in DISK:
        raise error
    remedy = "make room or change its permissions, and give the same command again"
    return UserError(f"{error.filename or 'output'}: {error.strerror}: {remedy}")


def fail(error: Exception) -> NoReturn:
    """Print the error as one line and exit with 1. With debug=true also print the traceback."""
    with suppress(OSError):  # where nobody reads, the exit code still tells
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            traceback.print_exception(error)
        print(f"error: {' '.join(printable(str(error)).split())}", file=sys.stderr)
    raise SystemExit(1)


def without_debug(words: list[str]) -> list[str]:
    """Remove debug=true, which every command takes, and switch tracebacks of UserErrors on."""
    if "debug=true" in words:
        os.environ[DEBUG] = "1"
    return [word for word in words if word not in ("debug=true", "debug=false")]


# ---------------------------------------------------------------------------------------------------------------------
# Readers that have gone


def say(line: str) -> None:
    """Print a line. If its reader has gone, as with `| head -1`, the work goes on without one."""
    try:
        print(printable(line), flush=True)
    except BrokenPipeError:
        if not hush():
            raise


def hush() -> bool:
    """Send the output that nobody reads any more to nowhere. Returns whether there is such output."""
    poll, nowhere = select.poll(), select.POLLERR | select.POLLHUP
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll.register(stream.fileno(), 0)
    deaf = [number for number, events in poll.poll(0) if events & nowhere]
    for number in deaf:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(deaf)


# ---------------------------------------------------------------------------------------------------------------------
# Signals


@contextmanager
def stoppable() -> Iterator[None]:
    """Let TERM, which batch systems send, and HUP do the same as Ctrl-C: raise KeyboardInterrupt, so that a run writes
    what it has. Another signal at once changes nothing; one that comes later ends the process where it is.

    The exit code is 128 and the first signal's number, as shells have it.
    """
    since, code = math.inf, INTERRUPTED

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal since, code
        if number == signal.SIGHUP:
            hush()  # the terminal has gone
        now = time.monotonic()
        if since == math.inf:
            since, code = now, 128 + number
            raise KeyboardInterrupt
        if now > since + IMPATIENCE:
            os._exit(128 + number)

    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and shells' background jobs have them
            signal.signal(number, stop)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        raise SystemExit(code) from None
    finally:
        since = -math.inf  # what the interpreter does at its end is not interrupted by an exception
