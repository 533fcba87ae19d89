"""How a metric is added: in-process a module and an entry, in an environment of its own a script and an entry."""

import json
import os
import shutil
import subprocess
import sys

import fabricate
import numpy as np
import pytest

from spectrum_bench.paths import ROOT

PROMPTS = fabricate.captions(3)

MODULE = '''
"""How much brighter a sample is than its reference."""

import numpy as np


def make_brightness(model):
    def score(sample, reference):
        return abs(float(np.mean(sample, dtype=float) - np.mean(reference, dtype=float)))

    return score
'''
ENTRY = """
        Metric(
            "brightness", "paired", "Brightness", False, "brightness:make_brightness", perfect=0.0, unrelated=1e-9,
            packages=("rich",),
        ),
"""

SCRIPT = '''
"""The number of letters of each prompt, by a package that cannot live beside ours."""

# /// script
# dependencies = []
# ///

import json
import sys

manifest, results = sys.argv[1:]
with open(manifest) as lines, open(results, "a") as out:
    for line in lines:
        sample = json.loads(line)
        print(json.dumps({"id": sample["id"], "letters": len(sample["prompt"])}), file=out)
'''
SCRIPT_ENTRY = """
        Metric("letters", "files", "Letters", True, environment="letters", only="pictures"),
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the sources, for tests to write into."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pyc*"))
    (folder / "configs").mkdir()
    return folder


def add(checkout, path, text, entry):
    """The two files that a metric needs."""
    metrics = checkout / "src/spectrum_bench/scoring/metrics"
    (metrics / path).write_text(text)
    listed = (metrics / "__init__.py").read_text()
    assert listed.count("    for metric in (\n") == 1
    (metrics / "__init__.py").write_text(listed.replace("    for metric in (\n", f"    for metric in ({entry}"))


def evaluate(checkout, *words):
    command = [sys.executable, str(checkout / "src/evaluate.py"), *map(str, words)]
    environment = os.environ | {"HOME": str(checkout.parent), "PYTHONPATH": str(checkout / "src")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("path,text,entry,name", [
    ("brightness.py", MODULE, ENTRY, "brightness"),
    ("isolated/score_letters.py", SCRIPT, SCRIPT_ENTRY, "letters"),
], ids=["in-process", "isolated"])  # fmt: skip
def test_a_metric_is_two_files(checkout, tmp_path, path, text, entry, name):
    pictures = fabricate.pictures(PROMPTS)
    reference = fabricate.experiment(tmp_path / "nocache", PROMPTS, pictures)
    brighter = np.minimum(pictures, 250) + 5
    experiment = fabricate.experiment(tmp_path / "brighter", PROMPTS, brighter.astype(np.uint8), "fora", 14)
    add(checkout, path, text, entry)

    done = evaluate(checkout, experiment, f"reference={reference}", f"metrics=psnr,{name}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((experiment / "summary.json").read_text())
    expected = {"brightness": brighter.mean() - pictures.mean(), "letters": np.mean([len(p) for p in PROMPTS])}[name]
    assert summary["metrics"][name]["mean"] == pytest.approx(expected) and summary["metrics"][name]["n"] == 3
    assert ("rich" in summary["versions"]) == (name == "brightness")
    assert name in (experiment / "metrics.csv").read_text().splitlines()[0]
    assert f"ready  {name}" in evaluate(checkout, "--check").stdout.splitlines()
