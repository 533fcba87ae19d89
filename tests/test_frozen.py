"""Gates and their frozen schedules, paired: differences by hand, and what is no pair."""

import fabricate
import numpy as np
import pytest

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import frozen
from spectrum_bench.scoring.evaluation import evaluate
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.metrics.pixel import psnr

PROMPTS = fabricate.captions(9)
PICTURES = fabricate.pictures(PROMPTS)


@pytest.fixture
def runs(tmp_path):
    """A gate that its frozen schedule beats, one that it equals, and a run without a partner."""
    made = {"a": 30, "a-frozen": 8, "b": 12, "b-frozen": 12, "b-consensus": 8, "alone": 5}
    fabricate.experiment(tmp_path / "nocache", PROMPTS, PICTURES)
    for name, sigma in made.items():
        nfe = 14 if name == "a-frozen" else 15
        fabricate.experiment(tmp_path / name, PROMPTS, fabricate.noisy(PICTURES, sigma), name, nfe)
    experiments = [read_experiment(tmp_path / name) for name in made]
    list(evaluate(experiments, read_experiment(tmp_path / "nocache"), "psnr"))
    return experiments, read_experiment(tmp_path / "nocache")


def test_differences_are_paired(runs):
    all_pairs = frozen.pairs(*runs, "psnr")
    assert [(pair.name, pair.schedule) for pair in all_pairs] == [
        ("a", "chosen most often"),
        ("b", "chosen most often"),
        ("b", "steps computed most often"),
    ]
    found = {pair.name: pair for pair in all_pairs[:2]}
    gate, other = ([psnr(x, y) for x, y in zip(fabricate.noisy(PICTURES, s), PICTURES, strict=True)] for s in (30, 8))
    assert found["a"].difference.mean == pytest.approx(np.mean(np.subtract(other, gate)))
    assert (found["a"].gate, found["a"].frozen) == pytest.approx((np.mean(gate), np.mean(other)))
    assert (found["a"].gate_passes, found["a"].frozen_passes, found["a"].masks, found["a"].samples) == (15, 14, 1, 9)
    assert (found["a"].same, found["b"].same) == (0, 9)
    assert found["a"].p_holm < 0.05 and (found["b"].difference.mean, found["b"].p_holm) == (0, 1)
    files = frozen.files(all_pairs, "psnr")
    text = files["frozen.md"].decode()
    a = found["a"]
    assert f"| a | chosen most often | {a.gate:.2f} | {a.frozen:.2f} | {a.difference.mean:+.2f} <sub>[" in text
    assert (
        "Of 3 frozen schedules 2 are better than their gate by more than chance, 0 worse, and 1 tell no difference"
        in text
    )
    assert files["frozen.csv"].decode().splitlines()[0].startswith("name,schedule,gate,frozen,gate_passes")
    assert files["frozen.png"].startswith(b"\x89PNG")


def test_without_a_partner_there_is_no_pair(runs):
    experiments, reference = runs
    with pytest.raises(UserError, match="no run has a partner whose name ends in -frozen"):
        frozen.pairs(experiments[-1:], reference, "psnr")
    with pytest.raises(UserError, match="not both scored by ssim"):
        frozen.pairs(experiments, reference, "ssim")
