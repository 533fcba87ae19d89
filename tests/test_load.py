"""What large runs may not lose: memory that grows with what records differ in, and one reading of each record."""

import json
import tracemalloc

import fabricate
import numpy as np
import pytest

from spectrum_bench.sampling import records
from spectrum_bench.sampling.records import collect_records, finished, kept_records, read_records


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    fabricate.experiment(folder, ["a ring"], np.zeros((1, 8, 8, 3), np.uint8), nfe=50)
    return json.loads((folder / "records.jsonl").read_text())


def written(folder, line, count):
    folder.mkdir(exist_ok=True)
    with open(folder / "records.jsonl", "w") as file:
        for i in range(count):
            own = {"id": f"{i:016x}", "prompt_index": i, "sample": f"samples/{i:016x}.png", "prompt": f"prompt {i}"}
            file.write(json.dumps(line | own) + "\n")
    return folder


def test_what_records_have_in_common_is_held_once(tmp_path, line):
    first, *others = read_records(written(tmp_path, line, 3))
    for name in records.COMMON:
        assert all(getattr(each, name) is getattr(first, name) for each in others), name
    assert len({each.prompt for each in (first, *others)}) == 3


def test_a_record_takes_less_memory_than_its_line(tmp_path, line):
    """So neither the file's text nor a copy of the steps stays with each."""
    sizes = []
    for count in (500, 1500):
        folder = written(tmp_path, line, count)
        tracemalloc.start()
        kept = read_records(folder)
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(kept) == count
    each = (sizes[1] - sizes[0]) / 1000
    assert each < 1.6 * len(json.dumps(line))


def test_a_finished_run_reads_each_record_once(tmp_path, line, monkeypatch):
    (tmp_path / "records").mkdir()
    for i in range(5):
        own = {"id": f"{i:016x}", "prompt_index": i, "sample": f"samples/{i:016x}.png", "sample_bytes": None}
        (tmp_path / f"records/{i:016x}.json").write_text(json.dumps(line | own))
    read = []
    parse = records.parse_json
    monkeypatch.setattr(records, "parse_json", lambda text: read.append(text) or parse(text))
    kept = kept_records(tmp_path)
    assert finished(tmp_path, kept) == set()  # there are no samples
    assert [each.prompt_index for each in collect_records(tmp_path, kept)] == list(range(5)) and len(read) == 5
    assert [each.prompt_index for each in read_records(tmp_path)] == list(range(5))
