"""Latents kept by a run, and their error by step: the paper's Tables 5 and 8."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from spectrum_bench.commands import run
from spectrum_bench.reporting.page import write_report
from spectrum_bench.sampling import records as jobs
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import read_experiment

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(compose, words, tmp_path):
    """nocache and reuse, whose first prompt's latents are kept."""
    for algo in ("nocache", "reuse"):
        run.main(compose(f"algo={algo}", *words, f"exp_name={algo}", "num_inference_steps=20", "keep_latents=1"))
    return tmp_path / "out"


def test_latents_are_those_of_every_step(runs, random_pipe):
    """Against the callback of a plain pipeline call."""
    reference, record = read_experiment(runs / "nocache"), jobs.read_records(runs / "nocache")[0]
    expected = []

    def keep(pipe, step, timestep, tensors):
        expected.append(tensors["latents"][0].clone())
        return tensors

    call = {"height": 64, "width": 64, "guidance_scale": 3.5, "max_sequence_length": 16, "num_inference_steps": 20}
    generator = torch.Generator().manual_seed(record.seed)
    random_pipe(record.prompt, generator=generator, callback_on_step_end=keep, **call)
    np.testing.assert_array_equal(reference.latents(record), torch.stack(expected).numpy())
    assert len(list((runs / "nocache/latents").iterdir())) == 1  # of one prompt alone
    assert reference.latents(jobs.read_records(runs / "nocache")[1]) is None


def test_error_by_step_by_hand(runs, tmp_path, monkeypatch):
    reuse, reference = read_experiment(runs / "reuse"), read_experiment(runs / "nocache")
    found = evaluation.latent_errors(reuse, reference)
    a, b = (e.latents(e.records[0]) for e in (reuse, reference))
    assert found["prompts"] == 1
    np.testing.assert_allclose(
        found["rmse"], [np.sqrt(((x - y).astype(float) ** 2).mean()) for x, y in zip(a, b, strict=True)]
    )
    first = next(i for i in range(20) if i not in reuse.records[0].computed_steps)
    assert found["rmse"][:first] == [0] * first and all(value > 0 for value in found["rmse"][first:])
    monkeypatch.setattr(evaluation, "sanity", lambda *_: {"itself": {}, "shuffled": None})  # random weights: all alike
    list(evaluation.evaluate([reuse], reference, "psnr"))
    write_report([reuse], reference, tmp_path / "report", 1)
    text = (tmp_path / "report/latents.md").read_text()
    assert f"{found['rmse'][9]:.4f} | {found['rmse'][19]:.4f} |" in text and "after step | Passes | 10 | 20 |" in text
    assert "Error of the latents by step" in (tmp_path / "report/index.html").read_text()
    assert (tmp_path / "report/latents.png").stat().st_size > 10_000


def test_they_can_be_asked_for_later(runs, compose, words, capsys):
    again = [*words, "exp_name=reuse", "num_inference_steps=20"]
    before = read_experiment(runs / "reuse").latents(jobs.read_records(runs / "reuse")[0])
    run.main(compose("algo=reuse", *again, "keep_latents=2"))
    assert "2 samples, 1 of them finished" in capsys.readouterr().out
    experiment = read_experiment(runs / "reuse")
    assert [experiment.latents(r) is not None for r in experiment.records] == [True, True]
    np.testing.assert_array_equal(experiment.latents(experiment.records[0]), before)


def test_other_steps_are_not_compared(runs):
    reference = read_experiment(runs / "nocache")
    path = next((runs / "reuse/latents").iterdir())
    save_file({"latents": np.zeros((10, 16, 32), np.float32)}, path)
    assert evaluation.latent_errors(read_experiment(runs / "reuse"), reference) is None
