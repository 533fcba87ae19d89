"""Scores by category of prompts."""

import csv
import json

import fabricate
import numpy as np
import pytest

from spectrum_bench.commands import report
from spectrum_bench.errors import UserError
from spectrum_bench.reporting import categories
from spectrum_bench.reporting.folder import REPORT
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.metrics.pixel import psnr

PROMPTS = fabricate.captions(6)
PICTURES = fabricate.pictures(PROMPTS)
# One method is bad on even prompts, the other one on odd ones.
FIRST, SECOND = ([fabricate.noisy(p, 4 if i % 2 == odd else 16, i) for i, p in enumerate(PICTURES)] for odd in (0, 1))
HOSTILE = "<b>=1+1|x</b>"


@pytest.fixture
def home(tmp_path):
    for name, images in {"nocache": PICTURES, "first": FIRST, "second": SECOND}.items():
        fabricate.experiment(tmp_path / name, PROMPTS, np.stack(images), name, 50 if name == "nocache" else 14)
    found = [read_experiment(tmp_path / name) for name in ("first", "second")]
    list(evaluation.evaluate(found, read_experiment(tmp_path / "nocache"), "psnr"))
    return tmp_path


def reported(home, *words):
    folders = [str(home / "first"), str(home / "second"), f"reference={home / 'nocache'}", f"out={home / 'out'}"]
    report.main([*folders, *words])
    return home / "out"


def test_means_are_those_of_the_categorys_prompts(home, capsys):
    with open(home / "kinds.csv", "w", newline="") as file:
        lines = [(prompt, (HOSTILE, "odd")[i % 2]) for i, prompt in enumerate(PROMPTS)]
        lines += [(PROMPTS[0], "one alone"), ("a prompt of another list", "elsewhere")]
        csv.writer(file).writerows([("Prompts", "Category"), *lines])
    out = reported(home, f"categories={home}/kinds.csv")
    with open(out / "categories.csv", newline="") as file:
        found = {(line["category"].lstrip("'"), line["experiment"]): line for line in csv.DictReader(file)}
    assert set(found) == {(kind, name) for kind in (HOSTILE, "odd", "one alone") for name in ("first", "second")}
    for odd, kind in enumerate((HOSTILE, "odd")):
        for name, images in {"first": FIRST, "second": SECOND}.items():
            wanted = np.mean([psnr(images[i], PICTURES[i]) for i in range(odd, 6, 2)])
            line = found[kind, name]
            assert float(line["mean"]) == pytest.approx(wanted) and int(line["prompts"]) == 3
            assert float(line["low"]) < wanted < float(line["high"])
    assert found["one alone", "first"]["low"] == ""
    text = (out / "categories.md").read_text()
    assert "<b>" not in text and "elsewhere" not in text and text.count("**") == 6
    assert all(REPORT.fullmatch(f"categories.{form}") for form in ("md", "csv"))
    reported(home)
    assert not (out / "categories.md").exists()  # of another report


def test_a_prompt_has_several_categories_as_in_vbench(home):
    (home / "kinds.json").write_text(
        json.dumps([{"prompt_en": PROMPTS[0], "dimension": ["a", "b"]}, {"prompt_en": PROMPTS[1], "dimension": ["b"]}])
    )
    assert categories.read(home / "kinds.json") == {"a": PROMPTS[:1], "b": PROMPTS[:2]}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("kinds.txt", "a ring", "is no table: name a .csv"),
        ("kinds.csv", "prompt\na ring\n", "row 1 has no prompt or no category"),
        ("kinds.csv", "prompt,category\na ring,\n", "row 1 has no prompt or no category"),
        ("kinds.csv", "prompt,category\n", "has 0 categories, not 1 to 100"),
        ("kinds.csv", "prompt,category\n" + "".join(f"a,{i}\n" for i in range(101)), "has 101 categories"),
        ("kinds.jsonl", '{"prompt": "a", "category": 5}', "row 1 has no prompt or no category"),
        ("kinds.json", "{", "kinds.json"),
        ("kinds.csv", "prompt,category\nanother,a\n", "names none of the 6 prompts"),
    ],
)
def test_other_files_are_refused(home, name, text, reason):
    (home / name).write_text(text)
    with pytest.raises(UserError, match=reason) as refusal:
        reported(home, f"categories={home / name}")
    assert "\n" not in str(refusal.value)
    assert not (home / "out").exists()


def test_a_missing_file_is_told(home):
    with pytest.raises(UserError, match="there is no such file"):
        reported(home, f"categories={home}/nowhere.csv")
