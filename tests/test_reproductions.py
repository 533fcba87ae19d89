"""Failures of other people's hooks, as results/studies/conformance tells them, are there in the pinned versions."""

import re
import runpy

import pytest
import torch

from spectrum_bench.paths import ROOT

SCRIPTS = sorted((ROOT / "results/studies/conformance/reproductions").glob("*.py"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_reproduction_prints_what_it_says(script, capsys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        runpy.run_path(str(script))
    wanted = re.findall(r"# prints: (.*)", script.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out.splitlines()
    assert wanted and [line for line in printed if line in wanted] == wanted, printed


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_reproduction_needs_none_of_ours(script):
    text = script.read_text(encoding="utf-8")
    assert "spectrum_bench" not in text and len(text.splitlines()) <= 40
    assert script.name in (script.parents[1] / "README.md").read_text(encoding="utf-8")
