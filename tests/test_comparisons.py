"""Differences from a baseline, corrected for their number; the gate; budgets."""

import csv
import io
import itertools
import tracemalloc
from dataclasses import replace

import fabricate
import numpy as np
import pytest
from fabricate import captions, noisy, pictures

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import cells, comparisons, notes, tables
from spectrum_bench.reporting.page import write_report
from spectrum_bench.reporting.rows import Result
from spectrum_bench.scoring import evaluation, stats
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.stats import Estimate

PROMPTS = captions(8)
PICTURES = pictures(PROMPTS)
LATENCY = {"text": 0.0, "denoise": 1.0, "decode": 0.0, "full_step": 0.02, "skipped_step": None}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two equals, one worse, one far worse, each with its own budget of passes, time and memory; and a re-run."""
    home = tmp_path_factory.mktemp("runs")
    rows = {
        "nocache": (PICTURES, 50, 1.0, 0),
        "again": (PICTURES, 50, 1.0, 0),
        "good": (noisy(PICTURES, 8, 1), 14, 0.5, 100),
        "equal": (noisy(PICTURES, 8, 2), 14, 0.4, 200),
        "worse": (noisy(PICTURES, 16, 3), 12, 0.3, 300),
        "worst": (noisy(PICTURES, 40, 4), 10, 0.6, 50),
    }
    for name, (images, passes, total, held) in rows.items():
        algo = "nocache" if passes == 50 else name
        latency = LATENCY | {"total": total}
        fabricate.experiment(home / name, PROMPTS, images, algo, passes, cache_bytes=held, latency=latency)
    found = [read_experiment(home / name) for name in rows if name != "nocache"]
    list(evaluation.evaluate(found, read_experiment(home / "nocache"), "psnr,ssim"))
    return home


def build(home, **how):
    names = ("again", "good", "equal", "worse", "worst")
    return tables.build([read_experiment(home / n) for n in names], read_experiment(home / "nocache"), **how)


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1, 1] and stats.holm([]) == []


def test_sign_flip_is_exact_on_few_prompts():
    """All 2^n signs, counted by hand."""
    values = np.array([0.3, 0.1, -0.2, 0.5, 0.4, 0.6])
    means = [abs(np.mean(values * signs)) for signs in itertools.product([1, -1], repeat=6)]
    expected = np.mean(np.array(means) >= abs(values.mean()) - 1e-12)
    assert stats.sign_flip(values) == pytest.approx(expected, abs=1e-9)
    assert stats.sign_flip(np.zeros(5)) == 1 and stats.sign_flip(np.array([1.0])) == 1


def test_sign_flip_keeps_its_level():
    """Of differences without effect 5 % may be found significant, and no more."""
    rng = np.random.default_rng(0)
    found = np.mean([stats.sign_flip(rng.standard_normal(9)) < 0.05 for _ in range(200)])
    assert found < 0.1


def test_verdicts(home):
    comparison = comparisons.compare(build(home), "good")
    assert comparison.baseline.experiment.name == "good"
    verdicts = {(d.row.experiment.name, d.metric): d.verdict for d in comparison.differences}
    assert verdicts["equal", "psnr"] == "tie" and {
        verdicts[n, m] for n in ("worse", "worst") for m in ("psnr", "ssim")
    } == {"worse"}
    worse = next(d for d in comparison.differences if d.row.experiment.name == "worse" and d.metric == "psnr")
    assert worse.estimate.mean == pytest.approx(-6, abs=0.3)
    assert worse.estimate.low < worse.estimate.mean < worse.estimate.high
    assert worse.wins == 0 and worse.p == pytest.approx(2 / 2**8) and worse.p_holm == pytest.approx(3 * 2 / 2**8)
    assert ("good", "psnr") not in verdicts and ("again", "psnr") not in verdicts


def test_a_baseline_must_name_one_row(home):
    with pytest.raises(UserError, match="baseline=nobody names 0 rows: choose of nocache, again, good"):
        comparisons.compare(build(home), "nobody")


def test_a_folder_names_a_row_too(home):
    comparison = comparisons.compare(build(home), str(home / "good"))
    assert comparison.baseline.experiment.name == "good"
    assert {d.row.experiment.name for d in comparison.differences} == {"equal", "worse", "worst"}


def test_methods_of_one_name_stay_apart(home):
    table = build(home)
    for row in table.rows:
        row.name = "spectrum"
    lines = cells.differences(table, comparisons.compare(table, str(home / "good")))
    texts = {row.experiment.name: line[0].text for row, line in lines}
    assert len(texts) == len(set(texts.values())) == 3


def test_rows_without_a_common_sample_are_not_compared(home):
    table = build(home)
    rows = {row.experiment.name: row for row in table.rows}
    nan = float("nan")
    rows["good"].scores["psnr"][4:], rows["equal"].scores["psnr"][:4] = [nan] * 4, [nan] * 4
    names = {d.row.experiment.name for d in comparisons.differences_in(table, "psnr", rows["good"])}
    assert names == {"worse", "worst"}


def test_what_was_not_measured_may_be_the_dearest(home):
    rows = {row.experiment.name: row for row in build(home, align="latency").rows}
    rows["good"].costs = replace(rows["good"].costs, latency_s=None)
    tables.mark_best(list(rows.values()), "latency")
    assert rows["equal"].results["psnr"].best and not rows["worst"].results["psnr"].best


def test_inside_the_noise_floor(home):
    table = build(home)
    rows = {row.experiment.name: row for row in table.rows}
    assert not comparisons.inside_floor(table, "psnr", rows["good"], rows["equal"])
    rows["again"].results["psnr"] = Result(Estimate(20.0))  # as if repetitions were that far apart
    assert comparisons.inside_floor(table, "psnr", rows["good"], rows["equal"])
    assert not comparisons.inside_floor(table, "psnr", rows["good"], rows["worst"])
    rows["again"].role = "method"
    assert not comparisons.inside_floor(table, "psnr", rows["good"], rows["equal"])


@pytest.mark.parametrize("align,first,bold", [
    ("passes", ["good", "equal"], {"good", "equal", "worse"}),
    ("latency", ["worst"], {"good", "equal"}),
    ("memory", ["worse"], {"good", "equal"}),
])  # fmt: skip
def test_budgets(home, align, first, bold):
    """Best at 14 passes are two equals; of latency the worst is also the slowest; of memory the good one is small."""
    table = build(home, align=align)
    methods = [row for row in table.rows if row.role == "method"]
    assert {row.experiment.name for row in methods[: len(first)]} == set(first)
    marked = {row.experiment.name for row in methods if row.results["psnr"].best}
    assert marked == bold  # never the cheapest, which beats nobody that is as cheap
    assert ("passes or fewer" if align == "passes" else f"little {align} or less") in table.notes[0]


def with_captions(table, scores):
    """Give the rows a made-up score that the reference has too."""
    for row in table.rows:
        values = scores[row.experiment.name]
        row.scores["caption"], row.scores["caption_reference"] = values, scores["nocache"]
        row.digest = replace(row.digest, metrics=(*row.digest.metrics, "caption"))
        less = stats.estimate(np.subtract(values, scores["nocache"]), row.subjects)
        row.results["caption"] = Result(stats.estimate(values, row.subjects), minus_reference=less)
    return table


def test_the_fastest_that_is_good_enough(home, monkeypatch):
    def accepted(table, margin):
        return [notes.acceptance(a.metric, margin, a.candidates, a.fastest) for a in comparisons.accept(table, margin)]

    rng = np.random.default_rng(0)
    own = 0.9 + 0.01 * rng.standard_normal(8)
    scores = {name: list(own) for name in ("nocache", "again", "good")}
    scores["equal"] = list(own - 0.0005)
    scores["worse"] = list(own - 0.2 * rng.random(8))
    scores["worst"] = list(own - 0.5)
    assert accepted(with_captions(build(home), scores), 0.01) == []  # eight prompts are too few
    monkeypatch.setattr(comparisons, "FEWEST_PROMPTS", 8)
    (note,) = accepted(with_captions(build(home), scores), 0.01)
    assert note.startswith(
        "Fastest that keeps 99 % of the reference's Caption with 95 % confidence (chosen from 4 rows"
    )
    assert note.endswith("equal (14/50, 2.50×).")
    poor = scores | {"good": scores["worst"], "equal": scores["worst"]}
    (note,) = accepted(with_captions(build(home), poor), 0.01)
    assert note.startswith("No method keeps 99 %")
    assert accepted(build(home), 0.01) == []  # PSNR and SSIM measure nothing of the reference's own


def test_files(home, tmp_path):
    experiments = [read_experiment(home / n) for n in ("again", "good", "equal", "worse", "worst")]
    write_report(experiments, read_experiment(home / "nocache"), tmp_path, 2, baseline="good")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "differences.csv").read_text())))
    assert len(rows) == 6 and {row["baseline"] for row in rows} == {"good"}
    text = (tmp_path / "differences.md").read_text()
    assert "| Difference from good | Passes | PSNR dB ↑ | SSIM ↑ |" in text and "(tie)" in text and "wins 0 %" in text
    assert notes.DIFFERENCES in text
    prompts = list(csv.DictReader(io.StringIO((tmp_path / "prompts.csv").read_text())))
    assert len(prompts) == 6 * 8 and {row["prompt"] for row in prompts} == set(PROMPTS)
    page = (tmp_path / "index.html").read_text()
    assert "Differences from good" in page and "Furthest from the reference" in page


@pytest.mark.slow
def test_four_thousand_prompts_stay_small():
    """Neither memory nor time grow with prompts times draws."""
    values = np.random.default_rng(0).normal(0.1, 1, 4_000)
    tracemalloc.start()
    low, high = stats.interval(values)
    p = stats.sign_flip(values)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    half = 1.96 * values.std() / np.sqrt(4_000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert p < 0.01 and most < 80e6
