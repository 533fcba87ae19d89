"""What large runs cost grows with their samples and not faster: calls and bytes are counted at three sizes.

How long they take is measured by scripts/load.py.
"""

import json
import sys
import tracemalloc

import fabricate
import numpy as np
import pytest

from spectrum_bench.reporting.page import write_report
from spectrum_bench.sampling.records import collect_records, finished, kept_records, read_records
from spectrum_bench.scoring.evaluation import evaluate
from spectrum_bench.scoring.experiments import read_experiment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of one size: prompts -> a folder with a reference and two methods, scored, with a record in each file."""
    homes = {}

    def make(prompts):
        if prompts not in homes:
            home = homes[prompts] = tmp_path_factory.mktemp(f"prompts{prompts}")
            texts = [f"prompt number {i}" for i in range(prompts)]
            pictures = np.random.default_rng(0).integers(0, 256, (prompts, 8, 8, 3), np.uint8)
            fabricate.experiment(home / "reference", texts, pictures)
            for name, sigma in {"one": 5, "two": 9}.items():
                fabricate.experiment(home / name, texts, fabricate.noisy(pictures, sigma), name, 14)
            (home / "one/records").mkdir()
            for line in (home / "one/records.jsonl").read_text().splitlines():  # without waiting for the disk
                (home / "one/records" / f"{json.loads(line)['id']}.json").write_text(line)
            score(home)
        return homes[prompts]

    return make


def resume(home):
    return finished(home / "one", kept_records(home / "one"))


def gather(home):
    return collect_records(home / "one")


def read(home):
    return read_records(home / "one")


def score(home):
    experiments = [read_experiment(home / name) for name in ("one", "two")]
    return list(evaluate(experiments, read_experiment(home / "reference"), "psnr"))


def report(home):
    experiments = [read_experiment(home / name) for name in ("one", "two")]
    return write_report(experiments, read_experiment(home / "reference"), home / "report", baseline="two")


def calls(work, home):
    """How many functions are called, those written in C too."""
    count = 0

    def watch(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        work(home)
    finally:
        sys.setprofile(None)
    return count


def peak(work, home):
    """The most bytes that were in use at a time."""
    tracemalloc.start()
    try:
        kept = work(home)  # noqa: F841  until its bytes are counted
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def growth(measure, work, folder, smallest):
    """How many times as much the second doubling of the samples adds as the first: 2 if the cost is linear, 4 if it is
    quadratic."""
    work(folder(smallest))  # what is imported or computed once
    one, two, four = (measure(work, folder(smallest * times)) for times in (1, 2, 4))
    return (four - two) / (two - one)


@pytest.mark.parametrize("work", [resume, gather, read, score, report])
def test_calls_grow_with_the_samples(folder, work):
    assert growth(calls, work, folder, 60) < (3 if work is report else 2.4)  # some of a page begins with many samples


@pytest.mark.parametrize("work", [resume, gather, read, score])
def test_memory_grows_with_the_samples(folder, work):
    assert growth(peak, work, folder, 60) < 2.4


def test_a_record_in_memory_is_small_and_read_line_by_line(folder):
    """Beside the records themselves there is never more than their sets of keys, whatever the file's size."""
    home = folder(240)
    size = (home / "one/records.jsonl").stat().st_size / 240
    tracemalloc.start()
    records = read_records(home / "one")
    kept, most = (each / len(records) for each in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    print(f"{size:.0f} bytes in the file, {kept:.0f} in memory, {most:.0f} while they are read")
    assert kept < 1200 and most - kept < size / 3
