"""How a metric is added: in-process a module and an entry, in an environment of its own a script and an entry."""

import json
import os
import shutil
import subprocess
import sys

import fabricate
import numpy as np
import pytest
from helpers import examples

from spectrum_bench.paths import ROOT

PROMPTS = fabricate.captions(3)

PLACE = "src/spectrum_bench/scoring/metrics"
EXAMPLES = examples()


@pytest.fixture
def checkout(tmp_path):
    """A copy of the sources, for tests to write into."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pyc*"))
    (folder / "configs").mkdir()
    return folder


def add(checkout, path, entry):
    """The two files that a metric needs, as docs/extend.md has them."""
    metrics = checkout / PLACE
    (metrics / path).write_text(EXAMPLES[f"{PLACE}/{path}"])
    listed = (metrics / "__init__.py").read_text()
    assert listed.count("    for metric in (\n") == 1
    (metrics / "__init__.py").write_text(listed.replace("    for metric in (\n", f"    for metric in (\n{entry}"))


def evaluate(checkout, *words):
    command = [sys.executable, str(checkout / "src/evaluate.py"), *map(str, words)]
    environment = os.environ | {"HOME": str(checkout.parent), "PYTHONPATH": str(checkout / "src")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("path,name", [
    ("brightness.py", "brightness"),
    ("isolated/score_letters.py", "letters"),
], ids=["in-process", "isolated"])  # fmt: skip
def test_a_metric_is_two_files(checkout, tmp_path, path, name):
    pictures = fabricate.pictures(PROMPTS)
    reference = fabricate.experiment(tmp_path / "nocache", PROMPTS, pictures)
    brighter = np.minimum(pictures, 250) + 5
    experiment = fabricate.experiment(tmp_path / "brighter", PROMPTS, brighter.astype(np.uint8), "fora", 14)
    add(checkout, path, EXAMPLES[f"entry of {name} in {PLACE}/__init__.py"])

    done = evaluate(checkout, experiment, f"reference={reference}", f"metrics=psnr,{name}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((experiment / "summary.json").read_text())
    expected = {"brightness": brighter.mean() - pictures.mean(), "letters": np.mean([len(p) for p in PROMPTS])}[name]
    assert summary["metrics"][name]["mean"] == pytest.approx(expected) and summary["metrics"][name]["n"] == 3
    assert ("rich" in summary["versions"]) == (name == "brightness")
    assert name in (experiment / "metrics.csv").read_text().splitlines()[0]
    assert f"ready  {name}" in evaluate(checkout, "--check").stdout.splitlines()
