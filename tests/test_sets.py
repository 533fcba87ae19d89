"""FID and KID, which score a set: their arithmetic by other code, the way from pictures to a table, what is refused."""

import base64
import json
import sys
from pathlib import Path
from types import ModuleType

import fabricate
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import frames, statistics, tables
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.metrics import METRICS, fid, isolated
from spectrum_bench.scoring.metrics.contracts import ModelFacts
from spectrum_bench.scoring.metrics.isolated import header, score_fid
from spectrum_bench.scoring.summary import describe_metric

PROMPTS = fabricate.captions(6)
RNG = np.random.default_rng(0)
A = RNG.normal(size=(60, 12)) @ RNG.normal(size=(12, 12))
B = RNG.normal(size=(50, 12)) @ RNG.normal(size=(12, 12)) + 1


def moments(x):
    centred = x - x.sum(0) / len(x)
    return x.sum(0) / len(x), centred.T @ centred / (len(x) - 1)


def test_fid_is_the_formula_with_a_matrix_root():
    (m, c), (n, d) = moments(A), moments(B)
    wanted = ((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert fid.frechet(A, B) == pytest.approx(wanted, rel=1e-9) == fid.frechet(B, A)
    assert fid.frechet(A, A) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [60, 8])  # of fewer samples than features the covariance is singular
def test_fid_of_a_set_that_is_moved_and_stretched(count):
    """On paper: with x -> 1.5 x + 2 it is |m - m'|^2 + 0.25 tr C."""
    m, c = moments(A[:count])
    wanted = ((0.5 * m + 2) ** 2).sum() + 0.25 * np.trace(c)
    assert fid.frechet(A[:count], 1.5 * A[:count] + 2) == pytest.approx(wanted, rel=1e-6)


def test_kid_is_that_of_torchmetrics(monkeypatch):
    first, second = A[:50], B

    wanted = float(poly_mmd(*map(torch.from_numpy, (first, second))))
    assert fid.kernel(first, second) == pytest.approx(wanted, rel=1e-9)
    monkeypatch.setattr(fid, "ROWS", 7)
    assert fid.kernel(first, second) == pytest.approx(wanted, rel=1e-9)
    halves = RNG.permutation(RNG.normal(size=(400, 12)))
    assert abs(fid.kernel(halves[:200], halves[200:])) < 0.05 * abs(fid.kernel(first, second))


SCRIPT = """
import base64, json, sys
import numpy as np
from PIL import Image
with open(sys.argv[2], "a") as out:
    for line in open(sys.argv[1]):
        sample = json.loads(line)
        pixels = np.asarray(Image.open(sample["path"]), "<f4")[::16, ::16].reshape(-1)
        print(json.dumps({"id": sample["id"], "features": base64.b64encode(pixels.tobytes()).decode()}), file=out)
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A reference and an experiment whose pictures' features are some of their pixels."""
    (tmp_path / "score_fid.py").write_text(SCRIPT)
    monkeypatch.setattr(header, "SCRIPTS", tmp_path)
    monkeypatch.setattr(isolated, "environment", lambda name: Path(sys.executable))
    monkeypatch.setattr(fid, "FEWEST", 6)
    clean = fabricate.pictures(PROMPTS)
    noisy = fabricate.noisy(clean, 20)
    fabricate.experiment(tmp_path / "nocache", PROMPTS, clean)
    fabricate.experiment(tmp_path / "fora", PROMPTS, noisy, "fora", 14)
    return (*(read_experiment(tmp_path / name) for name in ("fora", "nocache")), noisy, clean)


def test_from_pictures_to_a_table(runs):
    experiment, reference, noisy, clean = runs
    (_, summary) = next(evaluation.evaluate([experiment], reference, "psnr,fid,kid"))
    a, b = (x[:, ::16, ::16].reshape(6, -1).astype(np.float64) for x in (noisy, clean))
    metrics = summary["metrics"]
    assert metrics["fid"]["mean"] == pytest.approx(fid.frechet(a, b))
    assert metrics["kid"]["mean"] == pytest.approx(fid.kernel(a, b)) and metrics["kid"]["n"] == 6
    assert metrics["fid"]["interval"] is None
    assert describe_metric("fid", metrics["fid"]).endswith("(of the sets of 6 samples)")
    head = (experiment.folder / "metrics.csv").read_text().splitlines()[0]
    assert head == "id,prompt_index,seed,psnr,identical"

    table = tables.build([experiment], reference)
    row = table.methods[0]
    assert row.mean("fid") == metrics["fid"]["mean"] and row.results["fid"].minus_best is None
    assert "measured against" in table.reference.missing["fid"]
    assert "fid" not in frames.prompts(table) and frames.results(table)["fid"][1] == row.mean("fid")
    with pytest.raises(UserError, match="matters=fid: it scores a set and no prompt"):
        statistics.files(table, {"fid": 1.0})


def test_it_stays_beside_later_scores_and_leaves_a_table_of_other_samples(runs):
    experiment, reference, *_ = runs
    (_, first) = next(evaluation.evaluate([experiment], reference, "fid"))
    (_, summary) = next(evaluation.evaluate([experiment], reference, "psnr"))
    assert summary["metrics"]["fid"] == first["metrics"]["fid"] and summary["metrics"]["psnr"]["n"] == 6
    fewer = fabricate.experiment(experiment.folder.parent / "few", PROMPTS[:4], fabricate.pictures(PROMPTS[:4]), "few")
    others = [experiment, read_experiment(fewer)]
    assert len(list(evaluation.evaluate(others[1:], reference, "psnr,fid"))) == 1
    rows = {row.experiment.name: row for row in tables.build(others, reference).rows[1:]}
    assert "of the whole set of 6 samples, and this table has 4" in rows["fora"].missing["fid"]
    assert "4 samples say nothing of a distribution; score at least 6" in rows["few"].missing["fid"]


def test_few_samples_are_refused_before_a_network_runs(monkeypatch):
    monkeypatch.setattr(isolated, "results", None)
    items = [(Path(f"{i}.png"), "a ring") for i in range(1999)]
    with pytest.raises(UserError, match="^kid: 1999 samples say nothing of a distribution; score at least 2,000 samp"):
        fid.distance("kid", fid.kernel, [], items, items)


def test_without_weights_and_for_clips_it_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="kid: no ~/.cache/cleanfid/inception-.*; python download.py metrics=fid"):
        METRICS["kid"].scorer(ModelFacts())
    with pytest.raises(UserError, match="fid: these are clips"):
        METRICS["fid"].scorer(ModelFacts(fps=16))


def test_the_script_writes_features_of_what_can_be_read(tmp_path, monkeypatch):
    """With a network that averages, in the place of clean-fid's; the true package is in test_true_environments.py."""

    class Average(torch.nn.Module):
        def __init__(self, folder, download):
            super().__init__()
            assert folder == str(tmp_path) and download is False

        def forward(self, pictures):
            return pictures.mean((2, 3))

    for name, contents in {
        "inception_torchscript": {"InceptionV3W": Average},
        "resize": {"build_resizer": lambda mode: {"clean": lambda picture: picture.astype(np.float32)}[mode]},
    }.items():
        module = ModuleType(f"cleanfid.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, f"cleanfid.{name}", module)
    monkeypatch.setitem(sys.modules, "cleanfid", ModuleType("cleanfid"))
    monkeypatch.setattr(score_fid, "AT_ONCE", 2)
    clean = fabricate.pictures(PROMPTS[:3])
    for i, picture in enumerate(clean):
        fabricate.Image.fromarray(picture).save(tmp_path / f"{i}.png")
    lines = [{"id": str(i), "path": str(tmp_path / f"{i}.png")} for i in (0, 1, 7, 2)]
    (tmp_path / "manifest").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    score_fid.main(str(tmp_path / "manifest"), str(tmp_path / "out"), str(tmp_path / "inception-2015-12-05.pt"))
    found = {line["id"]: line for line in map(json.loads, (tmp_path / "out").read_text().splitlines())}
    assert found["7"]["error"].startswith("FileNotFoundError")
    for i in range(3):
        features = np.frombuffer(base64.b64decode(found[str(i)]["features"]), "<f4")
        assert features == pytest.approx(clean[i].mean((0, 1)), rel=1e-5)
