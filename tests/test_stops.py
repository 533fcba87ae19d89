"""TERM, HUP and Ctrl-C at any time: what is made is kept and gathered, the exit code tells, there is no traceback."""

import errno
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from attack import attack
from forked import Command
from helpers import start

from spectrum_bench.commands import ending, reproduce
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling import records

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
NAMES = [number.name for number in SIGNALS]


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


@pytest.fixture
def long_words(more_words, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red ring number {i}" for i in range(300)))
    return more_words


def until(met, process) -> None:
    """Wait for something while the process runs."""
    end = time.monotonic() + 120
    while not met():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


def on_record(folder: Path, count: int = 3):
    return lambda: len(list(folder.glob("records/*.json"))) >= count


def listens(process):
    """Whether the process has its own handler of TERM."""
    pattern, bit = re.compile(r"SigCgt:\s*(\w+)"), 1 << signal.SIGTERM - 1
    return lambda: int(pattern.search(Path(f"/proc/{process.pid}/status").read_text())[1], 16) & bit


def ended(process, number: int) -> str:
    """What a process has written to stderr until it ended by a signal."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "Traceback" not in err and "Stack" not in err, err
    return err


@pytest.mark.crash
@pytest.mark.parametrize("workers, name", [*((1, name) for name in NAMES), (2, "SIGTERM")])
def test_a_run_is_stopped(long_words, tmp_path, workers, name):
    """Twice, at once: as a scheduler that signals each process of a job, and the job."""
    number = signal.Signals[name]
    folder = tmp_path / "out/x"
    process = start(*long_words, f"ngpu={workers}")
    until(on_record(folder), process)
    family = psutil.Process(process.pid).children(recursive=True)
    for _ in range(2):
        process.send_signal(number)
    assert "interrupted: the same command goes on from here" in ended(process, number)
    assert 3 <= len(records.read_records(folder)) < 300
    _, left = psutil.wait_procs(family, timeout=20)
    assert not left and len(family) >= (workers > 1)


@pytest.mark.crash
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_run_is_stopped_while_it_loads(long_words, delay):
    command = [sys.executable, ROOT / "src/text_to_image.py", *long_words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(listens(process), process)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    ended(process, signal.SIGINT)


@pytest.mark.crash
def test_the_terminal_goes(long_words, tmp_path):
    """Its window is closed: the output leads nowhere, and what is made is gathered all the same."""
    folder = tmp_path / "out/x"
    ours, theirs = pty.openpty()

    def lead() -> None:
        os.setsid()
        fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY

    command = [sys.executable, ROOT / "src/text_to_image.py", *long_words]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=lead)
    os.close(theirs)

    def sampled() -> bool:
        while select.select([ours], [], [], 0)[0]:
            os.read(ours, 4096)
        return on_record(folder)()

    until(sampled, process)
    os.close(ours)  # the kernel sends HUP
    assert process.wait(120) == 128 + signal.SIGHUP
    assert 3 <= len(records.read_records(folder)) < 300


@pytest.mark.crash
def test_what_an_experiment_runs_is_stopped_with_it(tmp_path):
    words = ["table4_granularity", "model=tiny-flux", f"out={tmp_path}", "warmup_samples=0", "total_prompt_num=50"]
    folder = tmp_path / "table4_granularity/tiny-flux/nocache"
    process = Command(ROOT / "src/reproduce.py", *words)
    until(on_record(folder, 1), process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    ended(process, signal.SIGTERM)
    assert family and not psutil.wait_procs(family, timeout=20)[1]
    assert records.read_records(folder)


# ---------------------------------------------------------------------------------------------------------------------
# What ends a command, in children


def stopped(tmp_path, work):
    """The outcome of a command that does `work` to its own process."""
    (ground := tmp_path / "ground").mkdir()

    def command() -> None:
        sys.argv = ["command"]
        ending.run(lambda _: work())

    return attack(command, ground)


def me(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS, ids=NAMES)
def test_a_signal_is_an_interruption(tmp_path, number):
    def work():
        try:
            me(number, number, signal.SIGTERM)
            time.sleep(5)
        finally:
            me(*SIGNALS)  # while it writes what it has
            print("gathered", file=sys.stderr)

    outcome = stopped(tmp_path, work)
    assert (outcome.code, outcome.words) == (128 + number, "gathered\n")


@pytest.mark.parametrize("number", SIGNALS, ids=NAMES)
def test_who_asks_again_later_waits_no_longer(tmp_path, monkeypatch, number):
    monkeypatch.setattr(ending, "IMPATIENCE", -1)

    def work():
        try:
            me(signal.SIGTERM)
        finally:
            me(number)
            print("never", file=sys.stderr)

    outcome = stopped(tmp_path, work)
    assert (outcome.code, outcome.words) == (128 + number, "")


@pytest.mark.parametrize("number", SIGNALS, ids=NAMES)
def test_a_signal_that_is_ignored_stays_so(tmp_path, number):
    """As nohup ignores HUP, and a shell's job in the background ignores Ctrl-C."""

    def work():
        me(number)
        time.sleep(0.01)

    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert stopped(tmp_path, work).code == 0
    finally:
        signal.signal(number, before)


def test_a_signal_at_the_interpreters_end(tmp_path):
    def work():
        sys.exit(0)

    def command():
        sys.argv = ["command"]
        try:
            ending.run(lambda _: work())
        finally:
            me(signal.SIGTERM)
            time.sleep(5)

    (ground := tmp_path / "ground").mkdir()
    outcome = attack(command, ground)
    assert (outcome.code, outcome.words) == (143, "")


def test_a_library_that_raises_its_own_interruption(tmp_path):
    """As Ray does: the first signal decides the exit code all the same, and that of a run which has noticed."""

    def work():
        try:
            me(signal.SIGHUP)
        except KeyboardInterrupt:
            sys.exit(130)

    assert stopped(tmp_path, work).code == 129


def test_what_a_command_runs_ends_by_itself(tmp_path, monkeypatch):
    """A child that has 0.3 seconds of work left when its parent is stopped."""
    script = "import signal, sys, time\ndef stop(*_):\n time.sleep(0.3); open('written', 'w'); sys.exit(143)\n"
    script += "signal.signal(signal.SIGTERM, stop); open('ready', 'w'); time.sleep(60)"
    popen = subprocess.Popen
    monkeypatch.setattr(reproduce.subprocess, "Popen", lambda *_, **__: popen([sys.executable, "-c", script]))

    def work():
        pid = os.getpid()
        if not os.fork():
            while not Path("ready").exists():
                time.sleep(0.01)
            os.kill(pid, signal.SIGTERM)
            os._exit(0)
        reproduce.call("run")

    outcome = stopped(tmp_path, work)
    assert (outcome.code, outcome.words) == (143, "") and (tmp_path / "ground/written").exists()


# ---------------------------------------------------------------------------------------------------------------------
# File systems


@pytest.mark.parametrize("name", ["ENOLCK", "ENOTSUP", "ENOSYS"])
def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys, name):
    def flock(*_):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(fcntl, "flock", flock)
    with records.only_run(tmp_path / "x"):
        pass
    words = capsys.readouterr().err
    assert words.startswith(f"{tmp_path / 'x'}: no locks here") and words.count("\n") == 1
