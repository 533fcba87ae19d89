"""Nothing is lost, whatever dies: the run, its workers, a node, the disk. SPECTRUM_KILLS=50 kills more often."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import fabricate
import forked
import pytest
from helpers import composed, drawing, finish, start
from PIL import Image

from spectrum_bench.commands import run
from spectrum_bench.sampling import records as jobs

pytestmark = pytest.mark.crash

KILLS = int(os.environ.get("SPECTRUM_KILLS", 4))
WORKER_KILLS = int(os.environ.get("SPECTRUM_KILLS", 2))
PROMPTS = [f"a ring number {i}" for i in range(40)]
LONG = ["algo=spectrum", "num_inference_steps=12"]


@pytest.fixture
def long_words(weights, tmp_path):
    return [*drawing(weights, tmp_path, PROMPTS), *LONG]


@pytest.fixture(scope="module")
def undisturbed(weights, tmp_path_factory):
    """Id -> the pixels that a run which nothing happens to makes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run.main(composed(*drawing(weights, folder, PROMPTS), *LONG))
    return by_id(folder / "out/x")


def by_id(folder: Path) -> dict[str, bytes]:
    """Each record's pixels; fails if a record or its picture is not whole."""
    found = {}
    for path in folder.glob("records/*.json"):
        record = json.loads(path.read_text())
        with Image.open(folder / record["sample"]) as picture:
            found[record["id"]] = hashlib.sha256(picture.tobytes()).digest()
    return found


def run_in_child(arguments):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run.main(composed(*arguments))


def test_kill_9_of_the_run(long_words, undisturbed, tmp_path):
    """At any moment: what was on record before is there afterwards, unchanged; no file is half of one."""
    chance, folder = random.Random(0), tmp_path / "out/x"
    before, kills, stale = {}, 0, 0
    while kills < KILLS:
        child = forked.server().Process(target=run_in_child, args=(long_words,))
        child.start()
        more, until = chance.randrange(3), time.monotonic() + 60
        while child.is_alive() and len(list(folder.glob("records/*.json"))) < len(before) + more:
            assert time.monotonic() < until
            time.sleep(0.002)
        if kills % 2:  # in the middle of a write
            while child.is_alive() and not any(folder.glob("*/.*.part")):
                pass
        else:
            time.sleep(chance.uniform(0, 0.3))
        if not child.is_alive():  # it was done: on with a fresh folder
            assert by_id(folder) == undisturbed
            folder.rename(tmp_path / f"out/done{kills}")
            before = {}
            continue
        child.kill()
        child.join()
        kills += 1
        after = by_id(folder) if folder.exists() else {}
        assert before.items() <= after.items() <= undisturbed.items()
        before, stale = after, stale + len(list(folder.glob("*/.*.part")))
    run.main(composed(*long_words))
    assert by_id(folder) == undisturbed and not list(folder.glob("*/.*.part"))
    assert [r.prompt for r in jobs.read_records(folder)] == PROMPTS
    print(f"{kills} kills, {stale} unfinished files, every one of them swept")


def wait_for(folder: Path, records: int, process) -> None:
    while len(list(folder.glob("records/*.json"))) < records:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            return False
    return False


def workers_of(process) -> list[int]:
    found = subprocess.run(["pgrep", "-f", "ray::_Remote"], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found if descends(int(pid), process.pid)]


def test_kill_9_of_workers(long_words, undisturbed, tmp_path):
    chance, killed, rounds = random.Random(1), 0, 0
    while killed < WORKER_KILLS:
        folder = tmp_path / f"out/round{rounds}"
        process = start(*long_words, f"exp_name=round{rounds}", "ngpu=2")
        mine, rounds = 0, rounds + 1
        while process.poll() is None and mine < 5 and killed < WORKER_KILLS:
            done = len(list(folder.glob("records/*.json")))
            if done >= 8 * (mine + 1) - 4 and (found := workers_of(process)):
                time.sleep(chance.uniform(0, 0.3))
                os.kill(chance.choice(found), signal.SIGKILL)
                mine, killed = mine + 1, killed + 1
            time.sleep(0.02)
        finish(process)
        assert mine and by_id(folder) == undisturbed and not list(folder.glob("failures/*"))
        assert [r.prompt for r in jobs.read_records(folder)] == PROMPTS


def test_the_driver_is_killed(long_words, undisturbed, tmp_path):
    """Its workers go too, its directory is free at once, and the same command makes the rest, whatever its engine."""
    folder = tmp_path / "out/x"
    process = start(*long_words, "ngpu=2")
    wait_for(folder, 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    before = by_id(folder)
    run.main(composed(*long_words))
    assert 5 <= len(before) < len(PROMPTS) and before.items() <= undisturbed.items()
    assert by_id(folder) == undisturbed


def test_a_node_is_lost(long_words, undisturbed, tmp_path, monkeypatch):
    """Two nodes of one worker each, on this machine; one goes, the other goes on alone, and later a third comes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at Ray's own 15, workers stand still beside other work
    from ray.cluster_utils import Cluster

    head, folder = {"num_cpus": 1, "include_dashboard": False}, tmp_path / "out/x"
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        lost = cluster.add_node(num_cpus=1)
        process = start(*long_words, "ngpu=2", "device=cpu", f"engine.address={cluster.address}")
        wait_for(folder, 5, process)
        cluster.remove_node(lost, allow_graceful=False)
        wait_for(folder, 20, process)
        cluster.add_node(num_cpus=1)
        finish(process)
    finally:
        cluster.shutdown()
    assert by_id(folder) == undisturbed and not list(folder.glob("failures/*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs root to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a worker may still hold its log


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(long_words, undisturbed, small_disk, workers):
    """One line, nothing broken, and the same command goes on when there is space."""
    command = [*long_words, f"output_base_path={small_disk}", f"ngpu={workers}"]
    out, err = finish(start(*command), 1)
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "No space left on device" in said[0] and "Traceback" not in err
    before = by_id(small_disk / "x")
    assert 0 < len(before) < len(PROMPTS) and before.items() <= undisturbed.items()
    remount(small_disk, "size=8m")
    run.main(composed(*command[:-1]))
    assert by_id(small_disk / "x") == undisturbed


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_scores_and_a_report_do_not_fit(small_disk, tmp_path, how):
    """One line each; what is on the disk stays, and the same commands work when there is space."""
    prompts = fabricate.captions(2)
    pictures = fabricate.pictures(prompts)
    fabricate.experiment(tmp_path / "reference", prompts, pictures)
    fabricate.experiment(small_disk / "fast", prompts, fabricate.noisy(pictures, 9), "fora", 14)
    evaluate = ("evaluate.py", small_disk / "fast", f"reference={tmp_path / 'reference'}", "metrics=psnr")
    report = ("report.py", *evaluate[1:3], f"out={small_disk / 'out'}")
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    remount(small_disk, "ro" if how == "read-only" else "rw")
    before = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[how]
    done = fabricate.run_script(*evaluate)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert reason in done.stderr
    assert {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()} == before
    remount(small_disk, "rw,size=320k")  # enough for scores, not for a report
    assert fabricate.run_script(*evaluate).returncode == 0
    done = fabricate.run_script(*report)
    assert done.returncode == 1 and "No space left" in done.stderr and done.stderr.count("\n") == 1
    assert not (small_disk / "out").exists()
    remount(small_disk, "size=8m")
    assert fabricate.run_script(*report).returncode == 0 and (small_disk / "out/index.html").exists()


def test_a_clock_that_jumps(compose, long_words, tmp_path, monkeypatch):
    """Times are of a clock that only goes forward."""
    now = [2e9]

    def jumps():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", jumps)
    run.main(compose(*long_words, "total_prompt_num=2"))
    for record in jobs.read_records(tmp_path / "out/x"):
        assert 0 < record.latency["total"] < 60 and all(v is None or v >= 0 for v in record.latency.values())
