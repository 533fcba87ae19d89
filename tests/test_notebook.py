"""docs/notebook.ipynb runs, and shows what it prints."""

import json
import re

import pytest

import run_notebook as notebook

pytestmark = pytest.mark.slow


def printed(made: dict) -> list[list[str]]:
    """The words that each code cell has printed."""
    code = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    texts = ["".join("".join(output.get("text", [])) for output in cell["outputs"]) for cell in code]
    return [re.findall(r"[^\s:]+", text) for text in texts]


def test_the_notebook_runs_and_shows_what_it_prints():
    """Its words, and its numbers within what another processor's rounding may move a mean of decibels by."""
    shown = json.loads(notebook.NOTEBOOK.read_text(encoding="utf-8"))
    made = json.loads(json.dumps(shown))
    notebook.run(made)
    for own, stored in zip(printed(made), printed(shown), strict=True):
        assert len(own) == len(stored)
        for word, expected in zip(own, stored, strict=True):
            number = re.fullmatch(r"-?[\d.]+", expected)
            assert float(word) == pytest.approx(float(expected), abs=1.0) if number else word == expected
    drawn = [output for cell in made["cells"] for output in cell.get("outputs", []) if "data" in output]
    assert len(drawn) == 1 and len(drawn[0]["data"]["image/png"]) > 5000


def test_the_notebook_is_small_and_complete():
    text = notebook.NOTEBOOK.read_text(encoding="utf-8")
    made = json.loads(text)
    assert len(text) < 100_000 and made["nbformat"] == 4
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])  # nbformat 4.5 asks for one each
    code = "".join("".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code")
    for part in ("accelerate(", "trace(", "for_forecaster(", "plt.subplots"):
        assert part in code
