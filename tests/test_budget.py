"""Thresholds for a budget of passes."""

import pytest

from spectrum_bench.commands import budget as command
from spectrum_bench.errors import UserError
from spectrum_bench.lab import budget


def test_search_on_a_curve_known_beforehand():
    """passes = 50 / (1 + 10 v): 14 at v = 0.257."""
    value, taken = budget.search(lambda v: 50 / (1 + 10 * v), 14, 1e-5, 1e3, 30)
    assert taken == pytest.approx(14, abs=0.25) and value == pytest.approx(0.257, rel=0.05)
    stairs = budget.search(lambda v: 30 if v < 1 else 9, 14, 1e-5, 1e3, 30)  # nothing in between: the nearest
    assert stairs[1] == 9


def test_a_mask_needs_no_model(compose, capsys):
    words = ["algo=magcache", "schedule.ratios=[1,0.99]", "schedule.retention=0.1", "model.repo=nowhere", "passes=14"]
    command.main(compose(*words, config_name="budget"))
    lines = capsys.readouterr().out.split()
    assert lines[-1].startswith("schedule.threshold=") and "14" in lines


@pytest.mark.slow
def test_a_gate_is_run(compose, weights, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a red ring\na blue star\n")
    words = [f"model.repo={weights}", f"prompt_file={tmp_path}/p.txt", "num_inference_steps=8", "passes=4"]
    command.main(compose(*words, config_name="budget"))
    *tried, found = capsys.readouterr().out.strip().splitlines()
    assert any(line.startswith(f"{found}: ") for line in tried)
    taken = next(float(line.split()[1]) for line in tried if line.startswith(f"{found}: "))
    assert abs(taken - 4) <= 1


@pytest.mark.parametrize(
    "words,said",
    [
        (["algo=fora"], "has no schedule.threshold"),
        (["passes=0"], "passes must be a number from 1"),
        (["passes=51"], "passes must be a number from 1"),
        (["algo=magcache", "schedule.ratios=[1,0.99]", "passes=2"], "comes no nearer to 2 passes"),
    ],
)
def test_what_cannot_be_is_said(compose, words, said):
    with pytest.raises(UserError, match=said):
        command.main(compose("model.repo=nowhere", *words, config_name="budget"))
