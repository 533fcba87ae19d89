"""Evaluate, report and calibrate die at every write and at any moment. Afterwards there is the old result or the new
one, never a mixture. SPECTRUM_KILLS=50 kills more often."""

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import fabricate
import pytest
from attack import attack

from spectrum_bench.commands import calibrate
from spectrum_bench.errors import UserError
from spectrum_bench.reporting import folder as swapping
from spectrum_bench.reporting.folder import replace_folder
from spectrum_bench.reporting.page import write_report
from spectrum_bench.scoring.evaluation import evaluate
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.results import load

WRITES = ("fsync", "replace", "rename", "link", "mkdir", "unlink", "rmdir")  # of os: where a process may die
DIED = 9
KILLS = int(os.environ.get("SPECTRUM_KILLS", 4))


def dies(work: Callable[[], object], count: int) -> Callable[[], None]:
    """The work in a process that dies at its write number `count`, from 0, before or after that is done."""

    def run() -> None:
        left = [count // 2]

        def mortal(name: str) -> None:
            plain = getattr(os, name)

            def write(*args, **more):
                left[0] -= 1
                if left[0] < 0 and count % 2 == 0:
                    os._exit(DIED)
                done = plain(*args, **more)
                if left[0] < 0:
                    os._exit(DIED)
                return done

            setattr(os, name, write)

        for name in WRITES:
            mortal(name)
        exchange = swapping._exchange

        def swap(*folders: Path) -> bool:
            done = exchange(*folders)
            left[0] -= 1
            if left[0] < 0:
                os._exit(DIED)
            return done

        swapping._exchange = swap
        work()

    return run


def deaths(work: Callable[[], object], prepare: Callable[[], object], folder: Path, stride: int = 1):
    """Every place at which the work can die, or every so many, with the state before made anew for each."""
    for count in range(0, 200, stride):
        prepare()
        code = attack(dies(work, count), folder).code
        assert code in (0, DIED), code
        yield count, code
        if code == 0:
            return
    raise AssertionError("it dies for ever")


@pytest.fixture
def home(tmp_path):
    """A method scored against one reference, and another reference."""
    prompts = fabricate.captions(3)
    pictures = fabricate.pictures(prompts)
    fabricate.experiment(tmp_path / "a", prompts, pictures)
    fabricate.experiment(tmp_path / "b", prompts, fabricate.noisy(pictures, 30), git_sha="another")
    fabricate.experiment(tmp_path / "fast", prompts, fabricate.noisy(pictures, 9), "fora", 14)
    score(tmp_path, "a")
    return tmp_path


def score(home: Path, reference: str) -> None:
    list(evaluate([read_experiment(home / "fast")], read_experiment(home / reference), "psnr"))


def scores(home: Path, reference: str) -> list[float] | None:
    """The scores against a reference, if those on disk are of it."""
    try:
        return load(read_experiment(home / "fast"), read_experiment(home / reference))[0]["psnr"].tolist()
    except UserError as error:
        assert "was scored before" in str(error)
        return None


@pytest.mark.slow
@pytest.mark.parametrize("schema", [1, 2])
def test_evaluate_dies_at_every_write(home, tmp_path, schema):
    kept = tmp_path / "kept"
    shutil.copytree(home / "fast", kept)
    if schema == 1:
        summary = json.loads((kept / "summary.json").read_text())
        for node in (summary, summary["reference"]):
            for key in ("schema", "metrics_sha256", "config_sha256", "samples_sha256"):
                node.pop(key, None)
        (kept / "summary.json").write_text(json.dumps(summary))

    def prepare() -> None:
        shutil.rmtree(home / "fast")
        shutil.copytree(kept, home / "fast")

    old = scores(home, "a")
    score(home, "b")
    new = scores(home, "b")
    assert old != new and None not in (old, new) and scores(home, "a") is None
    states = []
    for _count, code in deaths(lambda: score(home, "b"), prepare, tmp_path):
        states.append((scores(home, "a"), scores(home, "b")))
        assert states[-1] in ((old, None), (None, new))
        assert code or states[-1] == (None, new)
    assert len(states) > 8 and states[0] == (old, None) and states == sorted(states, key=lambda s: s[0] is None)


@pytest.mark.slow
def test_calibrate_dies_at_every_write(tmp_path, ground):
    """In a folder that is there, and in a new one."""
    old, new = {"polynomial": [1.0]}, {"polynomial": [2.0, 3.0], "first": 1}
    for path in (tmp_path / "teacache/x.json", tmp_path / "new/deep/x.json"):
        states = []

        def prepare(path=path) -> None:
            if path.parent.name == "teacache":
                calibrate.write(path, old)
            else:
                shutil.rmtree(tmp_path / "new", ignore_errors=True)

        for _, code in deaths(lambda path=path: calibrate.write(path, new), prepare, ground):
            states.append(json.loads(path.read_text()) if path.exists() else None)
            assert states[-1] in (old if path.parent.name == "teacache" else None, new)
            assert code or states[-1] == new
        assert len(states) >= 5


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


OLD = {"table.md": b"old", "index.html": b"old", "differences.md": b"old"}
NEW = {"table.md": b"new", "index.html": b"new", "plot.svg": b"new"}


@pytest.mark.slow
def test_a_report_dies_at_every_write(tmp_path, ground):
    """Other files in its folder stay; what an older report had and the new one has not, goes."""
    out = tmp_path / "out"

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for name, data in (OLD | {"README.md": b"mine"}).items():
            (out / name).write_bytes(data)

    mine = {"README.md": b"mine"}
    states = []
    for _, code in deaths(lambda: replace_folder(out, NEW), prepare, ground):
        states.append(contents(out))
        assert states[-1] in (OLD | mine, NEW | mine)
        assert code or states[-1] == NEW | mine
    assert len(states) > 15
    replace_folder(out, NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ground", "out"]  # nothing of the dead is left


@pytest.mark.slow
def test_a_first_report_dies_at_every_write(tmp_path, ground):
    out = tmp_path / "deep/out"
    for _, code in deaths(lambda: replace_folder(out, NEW), lambda: shutil.rmtree(out.parent, True), ground):
        assert contents(out) in ({}, NEW) and (code or contents(out) == NEW)


@pytest.mark.parametrize("kind", ["holds a folder", "is where we are", "is a link"])
def test_folders_that_are_not_moved(tmp_path, monkeypatch, kind):
    out = tmp_path / "out"
    out.mkdir()
    (out / "table.md").write_bytes(b"old")
    if kind == "holds a folder":
        (out / "run").mkdir()
        (out / "run/records.jsonl").write_bytes(b"mine")
    elif kind == "is where we are":
        monkeypatch.chdir(out)
    else:
        (tmp_path / "link").symlink_to("out")
    before = out.stat().st_ino
    replace_folder(Path(".") if kind == "is where we are" else tmp_path / "link" if kind == "is a link" else out, NEW)
    assert (out.stat().st_ino == before) == (kind != "is a link")
    shutil.rmtree(out / "run", True)
    assert contents(out) == NEW


@pytest.mark.slow
def test_a_whole_report_dies_at_every_write(home, tmp_path):
    fast, reference = read_experiment(home / "fast"), read_experiment(home / "a")
    out, other = tmp_path / "out", tmp_path / "other"
    write_report([fast], reference, other, 1)
    write_report([fast], reference, out, 3, baseline="fast")
    kept = contents(out)
    new = None
    for _, code in deaths(lambda: write_report([fast], reference, out, 1), lambda: swap(out, kept), other, 5):
        now = contents(out)
        new = now if code == 0 else new
        assert now == kept or now.keys() == contents(other).keys() and now["index.html"] != kept["index.html"]
    assert new is not None


def swap(out: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name, data in files.items():
        (out / name).write_bytes(data)


# ---------------------------------------------------------------------------------------------------------------------
# In the middle of a file


def cut(work: Callable[[], object], size: int, ground: Path) -> int:
    """The exit code of work in a process that dies when a file becomes larger than so many bytes."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work()

    code = attack(limited, ground).code
    assert code in (0, -signal.SIGXFSZ)
    return code


@pytest.fixture
def ground(tmp_path):
    (folder := tmp_path / "ground").mkdir()
    return folder


@pytest.mark.parametrize("size", [0, 1, 100, 200, 1000, 10**6])
def test_evaluate_dies_in_the_middle_of_a_file(home, ground, size):
    old = scores(home, "a")
    code = cut(lambda: score(home, "b"), size, ground)
    assert (code == 0) == (size == 10**6)
    assert (scores(home, "a") == old) == bool(code) and (scores(home, "b") is None) == bool(code)
    at_work = home / f"fast/.summary.json.{os.getppid()}.part"
    at_work.touch()
    score(home, "b")
    assert list((home / "fast").glob(".*.part")) == [at_work]
    at_work.unlink()


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("exchanged", [True, False])
def test_a_report_dies_in_the_middle_of_a_file(tmp_path, ground, monkeypatch, size, exchanged):
    if not exchanged:
        monkeypatch.setattr(swapping, "_exchange", lambda *_: False)
    swap(tmp_path / "out", OLD)
    code = cut(lambda: replace_folder(tmp_path / "out", NEW), size, ground)
    assert (code == 0) == (size == 3)
    files = {name: (tmp_path / "out" / name).read_bytes() for name in OLD | NEW if (tmp_path / "out" / name).exists()}
    assert files == (OLD if code else NEW)
    replace_folder(tmp_path / "out", NEW)
    assert contents(tmp_path / "out") == NEW


@pytest.mark.parametrize("size", [0, 1, 10, 25, 1000])
def test_calibrate_dies_in_the_middle_of_a_file(tmp_path, ground, size):
    old, new = {"polynomial": [1.0]}, {"polynomial": [2.0, 3.0], "first": 1}
    path = tmp_path / "teacache/x.json"
    calibrate.write(path, old)
    code = cut(lambda: calibrate.write(path, new), size, ground)
    assert (code == 0) == (size == 1000) and json.loads(path.read_text()) == (old if code else new)
    assert bool(list(path.parent.glob(".*.part"))) == bool(code)
    calibrate.write(path, new)
    assert list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------------------------------------------------------------
# kill -9


def killed(work: Callable[[], object], folder: Path, prepare: Callable[[], object], count: int):
    """Kill a process at work at random moments, each second time while it writes a file below a folder, until it has
    been killed so often."""
    chance, begun = random.Random(0), time.monotonic()
    work()
    longest, kills = time.monotonic() - begun, 0
    for attempt in range(20 * count):
        prepare()
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            os._exit(0)
        until = time.monotonic() + (5 * longest if attempt % 2 else chance.uniform(0, 1.2 * longest))
        while time.monotonic() < until and not (attempt % 2 and any(folder.rglob(".*.part"))):
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        yield
        if kills >= count:
            return
    raise AssertionError(f"{kills} kills")


@pytest.mark.crash
def test_kill_9_of_evaluate(home, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(home / "fast", kept)
    old = scores(home, "a")
    score(home, "b")
    new = scores(home, "b")

    def prepare() -> None:
        shutil.rmtree(home / "fast")
        shutil.copytree(kept, home / "fast")

    for _ in killed(lambda: score(home, "b"), home / "fast", prepare, 5 * KILLS):
        assert (scores(home, "a"), scores(home, "b")) in ((old, None), (None, new))
    score(home, "b")
    assert scores(home, "b") == new


@pytest.mark.crash
def test_kill_9_of_report(home, tmp_path):
    fast, reference = read_experiment(home / "fast"), read_experiment(home / "a")
    out = tmp_path / "reports/out"
    write_report([fast], reference, tmp_path / "new", 1)
    write_report([fast], reference, out, 3, baseline="fast")
    kept, names = contents(out), contents(tmp_path / "new").keys()
    for _ in killed(lambda: write_report([fast], reference, out, 1), out.parent, lambda: swap(out, kept), KILLS):
        now = contents(out)
        assert now == kept or now.keys() == names and now["index.html"] != kept["index.html"]
    write_report([fast], reference, out, 1)
    assert contents(out).keys() == names and [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.crash
def test_kill_9_of_calibrate(tmp_path):
    path = tmp_path / "teacache/x.json"
    old, new = ({"polynomial": [value] * 100_000} for value in (1.0, 2.0))

    def prepare() -> None:
        calibrate.write(path, old)

    for _ in killed(lambda: calibrate.write(path, new), tmp_path, prepare, 5 * KILLS):
        assert json.loads(path.read_text()) in (old, new)
    calibrate.write(path, new)
    assert json.loads(path.read_text()) == new
