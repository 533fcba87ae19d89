"""The table of rows at equal passes: differences, sharpness and corrected p values of made-up runs."""

from types import SimpleNamespace

import fabricate
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

import hindcast_table
from spectrum_bench.sampling import media
from spectrum_bench.scoring.evaluation import evaluate
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.metrics.pixel import psnr


def test_a_soft_row_is_told_from_a_near_one(tmp_path, capsys):
    prompts = fabricate.captions(6)
    pictures = fabricate.pictures(prompts)
    soft = np.stack([np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(2))) for p in pictures])
    near = fabricate.noisy(pictures, 3)
    reference = read_experiment(fabricate.experiment(tmp_path / "nocache", prompts, pictures))
    for name, images in {"hindcast-7": near, "steps-7": soft, "reuse-7": near}.items():
        run = read_experiment(fabricate.experiment(tmp_path / name, prompts, images, algo=name, nfe=7))
        list(evaluate([run], reference, "psnr,ssim"))
    hindcast_table.main([str(tmp_path / "rows.csv"), str(tmp_path)])
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("row")
    apart = np.mean([psnr(a, b) for a, b in zip(soft, pictures, strict=True)]) - np.mean(
        [psnr(a, b) for a, b in zip(near, pictures, strict=True)]
    )
    assert rows.psnr_less_hindcast["steps"] == pytest.approx(apart, rel=1e-3) and apart < -1
    assert rows.low["steps"] < apart < rows.high["steps"]
    assert rows.edges["steps"] < 0.8 < 1 < rows.edges["hindcast"]
    assert rows.psnr_less_hindcast["reuse"] == 0 and rows.p_holm["reuse"] == 1
    assert rows.p_holm["steps"] == pytest.approx(
        2 * 2 / 2**6, abs=0.01
    )  # two rows, of 64 choices of signs two are as far
    assert "tiny-flux" in capsys.readouterr().out


def test_the_energy_of_a_clip_is_the_mean_of_its_frames(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    files = {".mp4": media.encode(clip, 8)[".mp4"]} | {
        f"{i}.png": media.encode(frame, None)[".png"] for i, frame in enumerate(clip)
    }
    for name, data in files.items():
        (tmp_path / f"x{name}").write_bytes(data)
    energies = {
        name: hindcast_table.energy(SimpleNamespace(sample=lambda record: record, by_key={(0, 0): path}), (0, 0))
        for name, path in ((path.name, path) for path in tmp_path.iterdir())
    }
    assert energies["x.mp4"] == pytest.approx(np.mean([energies[f"x{i}.png"] for i in range(3)]))
