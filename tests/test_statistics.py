"""What prompts can tell: power, equivalence, ranks, wins."""

import csv

import fabricate
import numpy as np
import pytest
from fabricate import captions, noisy, pictures
from scipy.stats import t

from spectrum_bench.commands import report
from spectrum_bench.errors import UserError
from spectrum_bench.reporting import statistics, tables
from spectrum_bench.reporting.folder import REPORT
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import read_experiment

PROMPTS = captions(12)
PICTURES = pictures(PROMPTS)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two equals and a worse one, the reference in front."""
    home = tmp_path_factory.mktemp("runs")
    rows = {"nocache": (PICTURES, 50), "good": (noisy(PICTURES, 8, 1), 14), "equal": (noisy(PICTURES, 8, 2), 14)}
    rows["worse"] = (noisy(PICTURES, 16, 3), 12)
    for name, (images, passes) in rows.items():
        fabricate.experiment(home / name, PROMPTS, images, name, passes)
    found = [read_experiment(home / name) for name in rows if name != "nocache"]
    list(evaluation.evaluate(found, read_experiment(home / "nocache"), "psnr"))
    return home


def table_of(home):
    names = ("good", "equal", "worse")
    return tables.build([read_experiment(home / name) for name in names], read_experiment(home / "nocache"))


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_prompts_needed_are_those_of_published_tables(effect, n):
    """A paired t-test, two-sided, level 0.05, power 0.8: as G*Power and Cohen's tables have it."""
    scattered = np.tile([1.0, -1.0], 50) * np.sqrt(99 / 100)  # a standard deviation of 1
    assert statistics.prompts_needed(scattered, effect) == n
    assert statistics.prompts_needed(scattered, 1e-6) is None is statistics.prompts_needed(scattered[:1], 1.0)


def test_power_is_what_a_simulation_finds():
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((4000, 20)) + 0.6
    found = np.abs(samples.mean(1) / (samples.std(1, ddof=1) / 20**0.5)) > t.ppf(0.975, 19)
    assert statistics.power(0.6, 20) == pytest.approx(found.mean(), abs=0.02)


def test_equivalence_by_hand():
    """The larger of two one-sided p-values; the mean is nearer to the upper bound."""
    values = np.array([0.1, 0.3, 0.2, 0.4, 0.0, 0.2])
    error = values.std(ddof=1) / 6**0.5
    assert statistics.equivalence(values, 0.5) == pytest.approx(t.cdf((values.mean() - 0.5) / error, 5))
    assert statistics.equivalence(-values, 0.5) == pytest.approx(statistics.equivalence(values, 0.5))
    assert statistics.equivalence(values, 0.1) > 0.5  # they differ by more
    assert statistics.equivalence(values[:1], 9.0) == 1 and statistics.equivalence(np.full(3, 0.2), 0.5) == 0


def test_ranks_of_draws(home):
    """The worse one is always last; of two equals neither is always first. Seeds are drawn too."""
    rows = statistics.ordered(table_of(home), "psnr")
    ranks = statistics.resampled_ranks(rows, "psnr")
    assert (np.sort(ranks) == [1, 2, 3]).all() and (ranks[:, 2] == 3).all()
    assert 0.02 < (ranks[:, 0] == 1).mean() < 0.999
    for row, scores in zip(rows, ([0.0, 3.0], [1.0, 1.9], [-1.0, -1.0]), strict=True):
        row.scores["psnr"], row.records = scores, [row.records[0]] * 2  # one prompt of two seeds
    first = (statistics.resampled_ranks(rows, "psnr") == 1).mean(0)
    assert first == pytest.approx([0.75, 0.25, 0], abs=0.04)  # 3, 3 or 0, 3 beats 1.9, 1.9 or 1, 1.9; not 0, 0


def test_a_report_says_what_its_prompts_tell(home, tmp_path, capsys):
    folders = [str(home / name) for name in ("good", "equal", "worse")]
    words = [f"reference={home / 'nocache'}", f"out={tmp_path / 'out'}", "matters=psnr:0.5"]
    report.main([*folders, *words])
    text = (tmp_path / "out/statistics.md").read_text()
    assert "equal within 0.5" in text and "| differ |" in text and "| 100% |" in text
    with open(tmp_path / "out/statistics.csv", newline="") as file:
        equal, worse = csv.DictReader(file)
    assert {equal["better"], equal["worse"]} == {"good", "equal"} and worse["worse"] == "worse"
    assert float(worse["difference"]) == pytest.approx(6, abs=0.3) and float(worse["p_holm"]) < 0.01
    assert float(equal["p_equal"]) < 0.05 <= float(equal["p_holm"]) and int(equal["prompts"]) == 12
    assert int(equal["needed"]) < 12 and all(REPORT.fullmatch(f"statistics.{form}") for form in ("md", "csv"))
    report.main([*folders, *words[:2]])
    assert not (tmp_path / "out/statistics.md").exists()  # of another report


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("psnrr:1", r"names no metric \(did you mean psnr\?\)"),
        ("psnr", "matters=psnr is no difference: write matters=psnr:0.5"),
        ("psnr:-1", "is no difference"),
        ("psnr:0", "is no difference"),
        ("psnr:1e9", "is no difference"),
        ("psnr:nan", "is no difference"),
    ],
)
def test_nonsense_is_refused(words, reason):
    with pytest.raises(UserError, match=reason):
        report.differences(words)


def test_a_metric_that_a_row_lacks_is_refused(home):
    with pytest.raises(UserError, match="matters=ssim: not every row was scored by it; there is psnr"):
        statistics.files(table_of(home), {"ssim": 0.1})
