"""results/memory/methods.csv says what its script computes."""

import pytest

import method_memory
from spectrum_bench.reporting.board.page import read_costs
from spectrum_bench.sampling.architectures import FOLDER

LINES = read_costs(method_memory.FILE.parents[1])


def test_every_line_is_of_a_model_and_a_method_and_none_is_there_twice():
    named = [(line["model"], line["size"], line["method"]) for line in LINES]
    assert len(set(named)) == len(named) > 100
    assert {line["method"] for line in LINES} == set(method_memory.METHODS)
    assert {line["model"] for line in LINES} <= {path.stem for path in FOLDER.glob("*.json")}


def test_caches_grow_with_what_a_method_keeps():
    for model in ("flux", "sdxl", "wan14b"):
        cache = {line["method"]: int(line["cache_bytes"]) for line in LINES if line["model"] == model}
        assert 0 == cache["nocache"] < cache["reuse"] < cache["taylorseer, last block"] < cache["spectrum"]


@pytest.mark.slow
def test_a_line_is_what_the_script_computes(monkeypatch):
    """And with more passes Spectrum's cache grows by what the line says."""
    columns = method_memory.HEAD
    (kept,) = (line for line in LINES if (line["model"], line["method"]) == ("auraflow", "spectrum"))
    made = dict(zip(columns, map(str, method_memory.row("auraflow", (), "spectrum")), strict=True))
    assert made == kept
    more = method_memory.row("auraflow", ("flex_window=0.4",), "spectrum")
    passes, cache = (int(more[columns.index(name)]) for name in ("passes", "cache_bytes"))
    assert passes > int(kept["passes"])
    assert cache == int(kept["cache_bytes"]) + (passes - int(kept["passes"])) * int(kept["cache_bytes_a_pass"])
