"""A cross of schedules and forecasters: its shares by hand, its files, and what is no cross."""

import fabricate
import numpy as np
import pytest
from helpers import ROOT

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import cross
from spectrum_bench.reporting.cross import Shares
from spectrum_bench.scoring.evaluation import evaluate
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.metrics.pixel import psnr


@pytest.mark.parametrize(
    "means, expected",
    [
        ([[1, 2], [3, 4]], Shares(0.8, 0.2, 0)),  # rows 1.5 and 3.5, columns 2 and 3: squares 4 and 1 of 5
        ([[1, 0], [0, 1]], Shares(0, 0, 1)),
        ([[5, 5, 5], [5, 5, 5]], Shares(0, 0, 0)),
        ([[0, 0], [6, 6], [3, 3]], Shares(1, 0, 0)),
        (
            [[0, 3], [0, 1]],
            Shares(1 / 6, 4 / 6, 1 / 6),
        ),  # row means 1.5 and 0.5, column means 0 and 2, 0.5 left in each
    ],
)
def test_shares_by_hand(means, expected):
    found = cross.shares(np.array(means, float))
    assert list(vars(found).values()) == pytest.approx(list(vars(expected).values()))


def test_intervals_hold_the_shares_of_a_population():
    """Cells are a + b + noise of each prompt; with many prompts the intervals close in on the truth."""
    rng, rows, columns = np.random.default_rng(0), np.array([0.0, 2, 4]), np.array([0.0, 1])
    truth = cross.shares(rows[:, None] + columns[None])
    noisy = {(f"r{i}", f"c{j}"): rows[i] + columns[j] + rng.normal(0, 1, 400) for i in range(3) for j in range(2)}
    found = cross.cross(noisy, "psnr")
    for name in ("rows", "columns", "interaction"):
        low, high = getattr(found.low, name), getattr(found.high, name)
        assert low <= getattr(found.shares, name) <= high and high - low < 0.1
        assert low - 0.01 <= getattr(truth, name) <= high + 0.01


@pytest.fixture
def runs(tmp_path):
    prompts = fabricate.captions(5)
    pictures = fabricate.pictures(prompts)
    fabricate.experiment(tmp_path / "nocache", prompts, pictures)
    made = {}
    for i, row in enumerate(("even", "late")):
        for j, column in enumerate(("reuse", "taylor1", "taylor2")):
            made[row, column] = fabricate.noisy(pictures, 4 + 9 * i + 3 * j, seed=i + 5 * j)
            fabricate.experiment(tmp_path / f"{row}--{column}", prompts, made[row, column], "x", 14)
    experiments = [read_experiment(tmp_path / f"{row}--{column}") for row, column in made]
    list(evaluate(experiments, read_experiment(tmp_path / "nocache"), "psnr"))
    means = {key: np.mean([psnr(a, b) for a, b in zip(each, pictures, strict=True)]) for key, each in made.items()}
    return tmp_path, experiments, means


def test_a_cross_of_runs(runs):
    home, experiments, means = runs
    found = cross.read(experiments, read_experiment(home / "nocache"), "psnr")
    for (row, column), mean in means.items():
        cell = found.scores[:, found.rows.index(row), found.columns.index(column)]
        assert len(cell) == 5 and cell.mean() == pytest.approx(mean)
    files = cross.files(found, ("schedule", "forecaster"))
    table = files["cross.md"].decode()
    assert f"| even | {means['even', 'reuse']:.2f} |" in table and table.splitlines()[4].startswith("| mean |")
    matrix = np.array([[means[row, column] for column in found.columns] for row in found.rows])
    assert f"schedule {100 * cross.shares(matrix).rows:.0f} % [" in table and "(5 samples)" in table
    assert files["cross.png"].startswith(b"\x89PNG") and b"<svg" in files["cross.svg"]
    assert files["cross.csv"].decode().startswith("schedule,reuse,taylor1,taylor2\neven,")


def test_what_is_no_cross_is_refused(runs):
    home, experiments, _ = runs
    reference = read_experiment(home / "nocache")
    with pytest.raises(UserError, match="there is no late--taylor2"):
        cross.read(experiments[:-1], reference, "psnr")
    with pytest.raises(UserError, match="one row or column"):
        cross.read(experiments[:3], reference, "psnr")
    with pytest.raises(UserError, match="or it has no ssim"):
        cross.read(experiments, reference, "ssim")


def test_the_script_gives_every_schedule_the_same_passes():
    from helpers import settings

    from spectrum_bench.commands.compose import build
    from spectrum_bench.schedules import plan

    text = (ROOT / "scripts/cross.sh").read_text()
    block = text[text.index("declare -A SCHEDULES") : text.index("declare -A FORECASTERS")]
    words = [line.split('"')[1].split() for line in block.splitlines() if "]=" in line]
    assert len(words) == 6
    assert {int(plan(build(settings("algo=reuse", *each)).schedule, 50).sum()) for each in words} == {14}
