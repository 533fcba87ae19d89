"""The table of methods is what the configurations and the golden values say."""

import importlib.util
from functools import partial

import pytest
from helpers import settings

from spectrum_bench.commands.compose import instantiate
from spectrum_bench.decisions import Gate
from spectrum_bench.forecasters import follows_gate
from spectrum_bench.paths import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("algorithms_page", ROOT / "scripts" / "algorithms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script):
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "python scripts/algorithms.py writes it anew"
    assert script.page(text.replace("| `fora` |", "| `fra` |")) == text


def test_every_method_is_in_one_of_the_tables(script):
    text = script.PAGE.read_text(encoding="utf-8")
    for path in (ROOT / "configs" / "algo").glob("*.yaml"):
        assert text.count(f"\n| `{path.stem}` |") == (path.stem not in ("nocache", "steps")), path.stem


@pytest.mark.parametrize(
    "algo,says", [("teacache", "each decides"), ("easycache", "the first decides"), ("fora", "same steps")]
)
def test_two_guidance_calls_are_treated_as_the_gate_itself_says(script, algo, says):
    schedule = instantiate(settings(f"algo={algo}").method.schedule)
    assert script.row(algo)["two guidance calls"] == says
    assert isinstance(schedule, Gate) == (says != "same steps")
    assert getattr(schedule, "shared", False) == (says == "the first decides")


@pytest.mark.slow
def test_a_forecast_that_follows_its_gate_is_not_called_linear(script):
    for path in (ROOT / "configs" / "algo").glob("*.yaml"):
        part = settings(f"algo={path.stem}").method.forecaster
        if part is not None and follows_gate(partial(instantiate(part))):
            assert script.row(path.stem)["linear"].startswith("no"), path.stem


def test_a_refusal_for_another_number_of_steps_is_none_of_the_model(script):
    assert script.row("hindcast")["runs on"] == "all" and script.row("deepcache")["runs on"] == "SDXL"
    assert script.row("diffusers_seacache")["runs on"] == "Wan"
