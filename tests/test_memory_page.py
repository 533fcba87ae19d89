"""docs/memory.md says what its script computes."""

import pytest

import memory
from spectrum_bench.sampling.architectures import FOLDER

LINES = [
    line for line in memory.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `") and "=" not in line
]


def test_every_model_with_an_architecture_has_a_line_and_its_smallest_card():
    assert {line.split("`")[1] for line in LINES} == {path.stem for path in FOLDER.glob("*.json")}
    for line in LINES:
        *_, weights, working, cache, plain, cached = (cell.strip() for cell in line.strip("|").split("|"))
        sizes = [float(cell.split()[0]) for cell in (weights, working, cache)]
        assert memory.smallest(int(1e9 * (sizes[0] + sizes[1]))) == plain
        assert memory.smallest(int(1e9 * sum(sizes))) == cached


@pytest.mark.slow
def test_a_line_is_what_the_script_computes():
    assert "| " + " | ".join(memory.row("auraflow", ())) + " |" in LINES
