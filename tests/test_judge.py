"""A judge of the user's own: a command that gets files, and what is said where it is none or writes nonsense."""

import sys

import fabricate
import pytest

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.metrics import DEFAULT, METRICS
from spectrum_bench.scoring.metrics.contracts import ModelFacts

PROMPTS = fabricate.captions(3)
# It likes long prompts and the uncached run, and refuses to judge one picture.
JUDGE = """
import json, sys
*own, manifest, results = sys.argv[1:]
with open(manifest) as lines, open(results, "a") as out:
    for line in lines:
        sample = json.loads(line)
        score = len(sample["prompt"]) - int(own[0]) * ("fora" in sample["path"])
        told = {"error": "I would rather not"} if sample["prompt"] == own[1] else {"judge": SCORE}
        print(json.dumps({"id": sample["id"]} | told), file=out)
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A function that evaluates with a judge that writes `score`."""
    folders = [
        fabricate.experiment(tmp_path / "nocache", PROMPTS, fabricate.pictures(PROMPTS)),
        fabricate.experiment(tmp_path / "fora", PROMPTS, fabricate.noisy(fabricate.pictures(PROMPTS), 5), "fora", 14),
    ]
    reference, experiment = map(read_experiment, folders)

    def evaluate(score="score", malus=2):
        (tmp_path / "my judge.py").write_text(JUDGE.replace("SCORE", score))
        command = f"{sys.executable} '{tmp_path}/my judge.py' {malus} '{PROMPTS[1]}'"
        monkeypatch.setenv("SPECTRUM_BENCH_JUDGE", command)
        return next(evaluation.evaluate([experiment], reference, "judge"))[1], command

    return evaluate


def test_a_command_judges_what_it_is_given(runs, caplog):
    summary, command = runs()
    scores = summary["metrics"]["judge"]
    lengths = [len(prompt) for prompt in (PROMPTS[0], PROMPTS[2])]
    assert scores["reference"]["mean"] == sum(lengths) / 2 and scores["mean"] == sum(lengths) / 2 - 2
    assert scores["n"] == 2 and scores["difference"]["mean"] == -2
    assert summary["versions"]["SPECTRUM_BENCH_JUDGE"] == command
    assert sum("I would rather not" in line for line in caplog.messages) == 2
    other, _ = runs(malus=5)  # another command does not get the first one's scores
    assert other["metrics"]["judge"]["difference"]["mean"] == -5


@pytest.mark.parametrize("score", ["'seven'", "None", "float('nan')", "True"])
def test_what_is_no_number_is_no_score(runs, score):
    summary, _ = runs(score)
    assert "it must write" in summary["metrics"]["judge"]["unavailable"]


def test_a_command_that_fails_is_told(runs):
    summary, _ = runs("1 / 0")
    assert "its script failed (ZeroDivisionError" in summary["metrics"]["judge"]["unavailable"]


@pytest.mark.parametrize("command, told", [
    ("", "judge: it is off; SPECTRUM_BENCH_JUDGE='python my_judge.py', and metrics=judge"),
    ("no-such-program x", "judge: there is no program no-such-program"),
    ("python 'my judge", "is no command .*; close its quotes"),
])  # fmt: skip
def test_without_a_command_it_is_off(monkeypatch, command, told):
    monkeypatch.setenv("SPECTRUM_BENCH_JUDGE", command)
    with pytest.raises(MetricUnavailable, match=told):
        METRICS["judge"].scorer(ModelFacts())
    assert "judge" not in DEFAULT
