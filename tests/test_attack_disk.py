"""Disks that are full or read-only at any write, and readers that close a pipe: one line, or a quiet end.

A hook refuses every write below a folder from a certain one on, in a child process for each case.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import fabricate
import pytest
from attack import Outcome, attack
from helpers import composed, made_up_sample

from spectrum_bench.commands import (
    budget,
    calibrate,
    cost,
    download,
    ending,
    evaluate,
    list_,
    replay,
    report,
    reproduce,
    rows,
    search,
    trace,
    tune,
)
from spectrum_bench.commands import score as scoring
from spectrum_bench.commands.entry import call
from spectrum_bench.errors import UserError
from spectrum_bench.lab import budget as searching
from spectrum_bench.lab import calibration, searched, traces
from spectrum_bench.lab import replay as replaying  # noqa: F401  imported before children are
from spectrum_bench.reporting import folder as swapping
from spectrum_bench.reporting import paper
from spectrum_bench.reporting.folder import replace_folder
from spectrum_bench.reporting.paper import Plan, Run
from spectrum_bench.sampling import counting, models, remote
from spectrum_bench.sampling.catalogue import Catalogue, WebEntry
from spectrum_bench.sampling.cost import Cost
from spectrum_bench.sampling.prompts import Prompt
from spectrum_bench.sampling.records import read_records
from spectrum_bench.scoring.evaluation import evaluate as score
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.results import load

pytestmark = pytest.mark.slow

REFUSALS = ("ENOSPC", "EROFS", "EACCES")  # others, as EDQUOT, EIO and EFBIG, are OSErrors too
CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate")  # audit events beside open


def refused(folder: Path, name: str, first: int = 0) -> None:
    """From here on the process's writes below a folder fail with an errno, but for the `first` ones."""
    number, left = getattr(errno, name), [first]

    def refuse(path: object) -> None:
        if Path(os.fsdecode(path)).resolve().is_relative_to(folder.resolve()):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number), path)

    def hook(event: str, arguments: tuple) -> None:
        named = event == "open" and isinstance(arguments[0], str | bytes)  # not by a descriptor
        if event in CHANGES or named and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            refuse(arguments[0])

    sync = os.fsync

    def full(descriptor: int) -> None:
        try:
            refuse(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError as error:
            error.filename = None  # as a write's has none
            raise
        sync(descriptor)

    os.fsync = full
    sys.addaudithook(hook)


def in_one_line(outcome: Outcome, name: str = "ENOSPC") -> bool:
    """Whether a command told in one line what the disk refused it."""
    lines = outcome.words.splitlines()
    return outcome.code == 1 and len(lines) == 1 and lines[0].startswith("error: ") and reason(name) in lines[0]


def reason(name: str) -> str:
    return os.strerror(getattr(errno, name))


def command(main: Callable[[list[str]], object], *words: object) -> None:
    sys.argv = ["command", *map(str, words)]
    ending.run(main)


@pytest.fixture
def ground(tmp_path):
    """Where a command stands."""
    (folder := tmp_path / "ground").mkdir()
    return folder


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """A reference and two methods."""
    home = tmp_path_factory.mktemp("experiments")
    prompts = fabricate.captions(2)
    pictures = fabricate.pictures(prompts)
    fabricate.experiment(home / "reference", prompts, pictures)
    for name, sigma in {"one": 5, "two": 9}.items():
        fabricate.experiment(home / name, prompts, fabricate.noisy(pictures, sigma), name, 14)
    return home


@pytest.fixture
def home(experiments, tmp_path):
    return shutil.copytree(experiments, tmp_path / "home")


@pytest.fixture
def scored(home):
    experiments = [read_experiment(home / name) for name in ("one", "two")]
    assert len(list(score(experiments, read_experiment(home / "reference"), "psnr"))) == 2
    return home


def scores(home: Path, name: str) -> list[float] | None:
    try:
        return load(read_experiment(home / name), read_experiment(home / "reference"))[0]["psnr"].tolist()
    except UserError:
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Each command, at its writes


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("name", REFUSALS)
def test_evaluate(experiments, tmp_path, ground, name, before):
    """One experiment's folder refuses its writes; the other is scored."""
    for first in range(20):
        home = shutil.copytree(experiments, tmp_path / f"{name}{first}")
        words = [home / "one", home / "two", f"reference={home / 'reference'}", "metrics=psnr"]
        if before:
            evaluate.main([str(word) for word in words])
        old = scores(home, "one")

        def work(home=home, words=words, first=first):
            refused(home / "one", name, first)
            command(evaluate.main, *words)

        outcome = attack(work, ground)
        assert scores(home, "two") is not None
        if outcome.code == 0:
            break
        assert in_one_line(outcome, name) and str(home / "one") in outcome.words, outcome
        assert scores(home, "one") in (old, None) or first > 3  # summary.json is in its place, or will be
        if name != "ENOSPC":
            return  # the place of a refusal is the same for all of them
    assert first > 4 and scores(home, "one") is not None


def test_evaluate_says_all_that_is_not_written(home, ground):
    def work():
        refused(home / "one", "EROFS"), refused(home / "two", "ENOSPC")
        command(evaluate.main, home / "one", home / "two", f"reference={home / 'reference'}", "metrics=psnr")

    outcome = attack(work, ground)
    assert in_one_line(outcome, "EROFS") and in_one_line(outcome), outcome


OLD = {"table.md": b"old", "index.html": b"old", "differences.md": b"old"}
NEW = {"table.md": b"new", "index.html": b"new", "plot.svg": b"new"}


@pytest.mark.parametrize("kind", ["exchanged", "not exchanged", "with a folder in it", "new"])
def test_a_report_is_replaced_as_a_whole_or_not_at_all(tmp_path, ground, kind):
    out = tmp_path / "x/out"
    for first in range(40):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        out.mkdir(parents=True)
        for name, data in OLD.items():
            (out / name).write_bytes(data)
        if kind == "with a folder in it":
            (out / "run").mkdir()
        if kind == "new":
            shutil.rmtree(out.parent)

        def work(first=first):
            if kind == "not exchanged":
                swapping._exchange = lambda *_: False
            refused(tmp_path / "x", "ENOSPC", first)
            try:
                replace_folder(out, NEW)
            except OSError as error:
                assert error.errno == errno.ENOSPC and error.filename is not None
                sys.exit(1)

        outcome = attack(work, ground)
        assert outcome.code in (0, 1), outcome
        files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} if out.exists() else {}
        renames = kind != "exchanged" and outcome.code and first > 12  # no full disk refuses to rename
        assert files == (({} if kind == "new" else OLD) if outcome.code else NEW) or renames
        assert [path.name for path in tmp_path.glob("x/.*")] + [path.name for path in out.glob(".*")] == []
        if outcome.code == 0:
            break
    assert first >= 7


@pytest.mark.parametrize("name, first", [*((name, 0) for name in REFUSALS), ("ENOSPC", 7), ("ENOSPC", 20)])
def test_report(scored, ground, name, first):
    out = scored / "reports/out"
    out.mkdir(parents=True)
    (out / "table.md").write_bytes(b"old")

    def work():
        refused(scored / "reports", name, first)
        command(report.main, scored / "one", scored / "two", f"reference={scored / 'reference'}", f"out={out}")

    outcome = attack(work, ground)
    assert in_one_line(outcome, name), outcome
    assert [path.read_bytes() for path in out.iterdir()] == [b"old"]


@pytest.mark.parametrize("name, first", [*((name, 0) for name in REFUSALS), *(("ENOSPC", n) for n in (3, 9, 15, 25))])
def test_score(scored, ground, name, first):
    """At a sample, at a record, at the scores and at the report; the user's pictures stay."""
    folders = [scored / each / "samples" for each in ("one", "two", "reference")]
    before = [[(path, path.read_bytes()) for path in sorted(folder.iterdir())] for folder in folders]
    words = [*folders[:2], f"reference={folders[2]}", f"out={scored}/out/here", "by=mtime", "metrics=psnr"]

    def work():
        refused(scored / "out", name, first)
        command(scoring.main, *words)

    (scored / "out").mkdir()
    outcome = attack(work, ground)
    assert in_one_line(outcome, name), outcome
    assert [[(path, path.read_bytes()) for path in sorted(folder.iterdir())] for folder in folders] == before
    assert attack(lambda: command(scoring.main, *words), ground).code == 0


@pytest.mark.parametrize("place", ["reports/tiny/flux/.a.new", "samples/a/tiny-flux/one"])
def test_reproduce(experiments, tmp_path, ground, monkeypatch, place):
    """The report, or the scores, of one of two experiments are refused; the other is reported."""

    def plans(name, model):
        runs = [Run(each, [], None) for each in ("reference", "one", "two")]
        facts = {"prompt_file": None, "prompts": None, "gpu_hours": 0, "baseline": None, "line": None}
        return [Plan(name, name, "tiny-flux", runs, **facts, calibrate=(), source="spectrum")]

    for name in ("a", "b"):
        shutil.copytree(experiments, tmp_path / f"samples/{name}/tiny-flux")
    monkeypatch.setattr(paper, "read_plans", plans)
    monkeypatch.setattr(reproduce, "run", lambda *_: [])

    def work():
        refused(tmp_path / place, "ENOSPC")
        command(reproduce.main, "a", "b", f"out={tmp_path}/samples", f"report={tmp_path}/reports")

    outcome = attack(work, ground)
    told = str(tmp_path / place).replace(".a.new", "a")  # the folder that it would have replaced
    assert in_one_line(outcome) and told in outcome.words, outcome
    assert (tmp_path / "reports/tiny/flux/b/index.html").exists() and not (tmp_path / "reports/tiny/flux/a").exists()


@pytest.fixture
def calibrated(tmp_path, monkeypatch):
    """`calibrate` of one method without a model; constants of before are in their place."""
    monkeypatch.setattr(calibrate, "CALIBRATION", tmp_path / "calibration")
    (tmp_path / "calibration/teacache").mkdir(parents=True)
    path = tmp_path / "calibration/teacache/tiny-flux.json"
    path.write_text('{"polynomial": [1.0]}')
    without_model(calibrate, monkeypatch)
    monkeypatch.setattr("spectrum_bench.caching.session.denoisers", lambda pipe: {"transformer": None})
    monkeypatch.setitem(calibration.METHODS, "teacache", lambda *_: {"polynomial": [2.0, 3.0], "first": 1})
    cfg = composed("algo=teacache", config_name="calibrate")
    return path, lambda: call(calibrate.main, cfg)


class PROMPTS:
    lines = (Prompt("a red ring"),)
    sha256 = ""


def without_model(module, monkeypatch):
    """A command that opens no model, and measures nothing of the machine."""
    monkeypatch.setattr(module, "prepare", lambda cfg: (calibrate.settings_of(cfg), PROMPTS))
    monkeypatch.setattr(module, "origin", lambda *_: {})
    monkeypatch.setattr(models, "open_pipeline", lambda settings: (None, "cpu"))
    monkeypatch.setattr("spectrum_bench.lab.uncached.Uncached", lambda *_: None)


@pytest.mark.parametrize("name", REFUSALS)
def test_calibrate(calibrated, tmp_path, ground, name):
    path, work = calibrated
    old = path.read_bytes()
    for first in range(10):

        def full(first=first):
            refused(tmp_path / "calibration", name, first)
            work()

        outcome = attack(full, ground)
        if outcome.code == 0:
            break
        assert in_one_line(outcome, name) and "tiny-flux.json" in outcome.words, outcome
        assert path.read_bytes() == old and len(list(path.parent.iterdir())) == 1
    assert first >= 3 and json.loads(path.read_text()) == {"polynomial": [2.0, 3.0], "first": 1}


def test_calibrate_measures_nothing_that_it_could_not_write(calibrated, ground, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as of a read-only file system; root may write elsewhere
    monkeypatch.setattr(models, "open_pipeline", lambda settings: pytest.fail("a model was loaded"))
    outcome = attack(calibrated[1], ground)
    assert outcome.verdict == "refused" and "cannot write to" in outcome.words, outcome


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """Two lists of prompts that `download` can fetch, one into each folder."""
    text = b"a red ring\n"
    digest = hashlib.sha256(text).hexdigest()
    lists = {n: WebEntry(f"http://x/{n}.txt", str(tmp_path / n), len(text), digest) for n in ("one", "two")}
    monkeypatch.setattr(download, "read_catalogue", lambda weights, together: Catalogue({}, lists, {}))
    monkeypatch.setattr(remote, "http_get", lambda url, file, **_: file.write(text))
    return tmp_path


@pytest.mark.parametrize("name", REFUSALS)
def test_download(offered, ground, name):
    """One list cannot be written; the other is fetched."""
    for first in range(10):
        for each in ("one", "two"):
            shutil.rmtree(offered / each, ignore_errors=True)

        def work(first=first):
            refused(offered / "one", name, first)
            command(download.main, "prompts=one,two")

        outcome = attack(work, ground)
        assert (offered / "two/two.txt").exists()
        if outcome.code == 0:
            break
        lines = outcome.words.splitlines()
        assert outcome.code == 1 and len(lines) == 2, outcome
        assert lines[0].startswith("error: prompts=one: ") and reason(name) in lines[0]
        assert lines[1] == "failed: prompts=one (the reasons are above)"
    assert first > 3


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """trace, search and replay without a model: the folder that each writes into, and its work."""
    basis, matrix = made_up_sample()
    made = traces.Trace(basis @ basis.T / basis.shape[1], matrix)
    without_model(trace, monkeypatch), without_model(search, monkeypatch)
    monkeypatch.setattr(traces, "trace", lambda *_: made)
    monkeypatch.setattr(searched, "find", lambda *_: {"mask": [0, 4]})
    monkeypatch.setattr(search, "CALIBRATION", tmp_path / "calibration")
    monkeypatch.setattr(replay, "identify", lambda model: None)
    traces.write(tmp_path / "given", [made, made], {"steps": 8, "guidance": 3.5})
    steps = "num_inference_steps=8"
    traced = composed(f"trace={tmp_path}/traces/here", steps, config_name="trace")
    sought = composed("algo=taylorseer", "site=last_block", "passes=4", steps, config_name="search")
    words = [f"trace={tmp_path}/given", f"out={tmp_path}/replay", "algo=spectrum", steps]
    replayed = composed(*words, config_name="replay")
    return {
        "trace": (tmp_path / "traces", lambda: ending.run(lambda _: call(trace.main, traced))),
        "search": (tmp_path / "calibration", lambda: ending.run(lambda _: call(search.main, sought))),
        "replay": (tmp_path / "replay", lambda: ending.run(lambda _: call(replay.main, replayed))),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("study, name", [*(("trace", n) for n in REFUSALS), ("search", "ENOSPC"), ("replay", "ENOSPC")])
def test_a_study(studies, ground, study, name):
    """Each of its files is the old one or the new one, and nothing else stays."""
    folder, work = studies[study]
    assert attack(work, ground).code == 0
    whole = contents(folder)
    for path in folder.rglob("*"):
        path.write_bytes(b"old") if path.is_file() else None
    for first in range(30):

        def full(first=first):
            refused(folder, name, first)
            work()

        outcome = attack(full, ground)
        left = contents(folder)
        assert left.keys() == whole.keys() and all(left[each] in (b"old", whole[each]) for each in whole)
        if outcome.code == 0:
            break
        assert in_one_line(outcome, name) and str(folder) in outcome.words, outcome
    assert first >= 3 and left == whole


@pytest.mark.parametrize("name, first", [("EROFS", 0), *(("ENOSPC", n) for n in (5, 8, 12))])
def test_rows(words, tmp_path, ground, name, first):
    """The folder of one row is refused, at its settings, lock, cost, sample or record; the other row is finished."""
    (tmp_path / "rows.txt").write_text("one algo=reuse\ntwo algo=reuse\n")
    common = [word for word in words if not word.startswith("exp_name=")]

    def work():
        refused(tmp_path / "out/one", name, first)
        command(rows.main, tmp_path / "rows.txt", "total_prompt_num=1", *common)

    outcome = attack(work, ground)
    own, all_of_them = [line for line in outcome.words.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "out/one") in own and reason(name) in own, outcome
    assert all_of_them.startswith("error: one failed; the others are finished") and outcome.code == 1, outcome
    assert len(read_records(tmp_path / "out/two")) == 1 and "Traceback" not in outcome.words


# ---------------------------------------------------------------------------------------------------------------------
# Where the output goes


def printing(home, offered, studies, monkeypatch):
    """Every command with something to print, without a model."""
    (home / "rows").write_text("one algo=reuse\ntwo algo=fora\n")
    monkeypatch.setattr(rows, "sample", lambda *_: print("a sample", flush=True) or 0)
    monkeypatch.setattr(counting, "count", lambda *_: Cost(1000, [1], 2048, 8192, 1024))
    counted = composed("algo=spectrum", config_name="cost")
    monkeypatch.setattr(budget, "passes_by", lambda cfg: lambda threshold: print(threshold, flush=True) or 14.0)
    monkeypatch.setattr(searching, "search", lambda passes, target, *_: (0.5, passes(0.5)))
    monkeypatch.setattr(tune, "main", lambda cfg: print("0.5: 14 passes", flush=True))
    budgeted = composed("algo=teacache", config_name="budget")
    folders = [home / "one", home / "two", f"reference={home / 'reference'}"]
    pictures = [home / "one/samples", f"reference={home / 'reference/samples'}"]
    return {
        "evaluate": lambda: command(evaluate.main, *folders, "metrics=psnr"),
        "report": lambda: command(report.main, *folders, f"out={home}/out"),
        "score": lambda: command(scoring.main, *pictures, f"out={home}/brought", "by=mtime", "metrics=psnr"),
        "download": lambda: command(download.main, "prompts=one,two"),
        "list": lambda: command(list_.main, "algos"),
        "help": lambda: command(reproduce.main, "--help"),
        "budget": lambda: ending.run(lambda _: call(budget.main, budgeted)),
        "tune": lambda: ending.run(lambda _: call(tune.main, budgeted)),
        "rows": lambda: command(rows.main, home / "rows"),
        "cost": lambda: ending.run(lambda _: call(cost.main, counted)),
    } | {name: work for name, (_, work) in studies.items()}


@pytest.fixture
def commands(scored, offered, studies, monkeypatch):
    return printing(scored, offered, studies, monkeypatch)


def done(home: Path, offered: Path) -> dict[str, bool]:
    """What of a command's work must be there, whoever reads its output."""
    return {"report": (home / "out/index.html").exists(), "download": (offered / "two/two.txt").exists()}


def test_nobody_reads(commands, scored, offered, ground):
    """As with `| head -1`."""
    for name, run_it in commands.items():

        def work(run_it=run_it):
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
            run_it()

        outcome = attack(work, ground)
        assert (outcome.code, outcome.words) in ((141, ""), (0, "")), (name, outcome)
        assert done(scored, offered).get(name, True), name


def test_the_output_is_full(commands, ground):
    for name, run_it in commands.items():

        def work(run_it=run_it):
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
            run_it()

        outcome = attack(work, ground)
        assert outcome.words.splitlines()[-1].startswith("error: ") and reason("ENOSPC") in outcome.words, (
            name,
            outcome,
        )
        assert outcome.code == 1 and "Traceback" not in outcome.words, (name, outcome)


def test_there_is_no_output(commands, ground):
    """As with >&-."""
    for name, run_it in commands.items():

        def work(run_it=run_it):
            os.close(1)
            sys.stdout = None
            run_it()

        outcome = attack(work, ground)
        assert (outcome.code, outcome.words) == (0, ""), (name, outcome)


def test_a_bug_keeps_its_traceback(ground):
    """Of a pipe that is not the output, and of a file that is not there."""

    def broken():
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"x")

    for work in (broken, lambda: os.stat("nowhere")):
        outcome = attack(lambda work=work: command(lambda _: work()), ground)
        assert outcome.verdict == "traceback" and outcome.code == 99
