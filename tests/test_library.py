"""The library's four lines, on a pipeline of one's own."""

import hydra
import numpy as np
import pytest
import torch
from helpers import composed, inventory
from hydra.core.global_hydra import GlobalHydra

import spectrum_bench
from spectrum_bench.commands import run as command
from spectrum_bench.commands.accelerate import recognise
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.media import read
from spectrum_bench.sampling.models import load_pipeline
from spectrum_bench.sampling.records import read_records
from spectrum_bench.sampling.settings import ModelSettings

CALL = {"height": 64, "width": 64, "guidance_scale": 3.5, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(ModelSettings("tiny-flux", repo="assets/tiny/flux", dtype="float32"), "cpu")


def test_four_lines_make_what_a_run_makes(pipe, tmp_path):
    (tmp_path / "p.txt").write_text("a red ring\n")
    words = ["algo=spectrum", "algo.w=0.5", "flex_window=3", "num_inference_steps=12", "warmup_samples=0", "exp_name=x"]
    command.main(composed(*words, f"prompt_file={tmp_path}/p.txt", f"output_base_path={tmp_path}"))
    record = read_records(tmp_path / "x")[0]
    generator = torch.Generator().manual_seed(42)
    with spectrum_bench.accelerate(pipe, "spectrum", w=0.5, flex_window=3, num_inference_steps=12) as run:
        image = run("a red ring", generator=generator, **CALL).images[0]
    assert run.computed_steps == record.computed_steps and run.cache_bytes == record.cache_bytes
    assert np.array_equal(np.asarray(image), read(tmp_path / "x" / record.sample))


def test_a_second_call_begins_anew_and_nothing_stays(pipe):
    before = inventory(pipe.transformer)
    seen = []

    def mine(pipe, step, timestep, tensors):
        seen.append(step)
        return tensors

    with spectrum_bench.accelerate(pipe, "taylorseer", interval=3, num_inference_steps=9) as run:
        pictures = [
            run("a red ring", generator=torch.Generator().manual_seed(0), callback_on_step_end=mine, **CALL).images[0]
            for _ in range(2)
        ]
        steps = run.computed_steps
    assert np.array_equal(*map(np.asarray, pictures)) and seen == [*range(9), *range(9)]
    assert steps == [0, 1, 2, 3, 4, 7]
    assert inventory(pipe.transformer) == before


def test_the_pipelines_own_call_takes_the_callback(pipe):
    with spectrum_bench.accelerate(pipe, "fora", num_inference_steps=8) as run:
        pipe("a red ring", num_inference_steps=8, callback_on_step_end=run.callback, output_type="latent", **CALL)
    assert run.computed_steps == [0, 4]


def test_constants_are_found_by_the_denoiser(pipe):
    assert recognise(pipe) == "tiny-flux"
    with spectrum_bench.accelerate(pipe, "teacache", threshold=0.2, num_inference_steps=8) as run:
        run("a red ring", output_type="latent", **CALL)
    assert 0 < len(run.computed_steps) < 8
    with pytest.raises(UserError, match="no constants for teacache"):
        spectrum_bench.accelerate(pipe, "teacache", num_inference_steps=8, model="sdxl")


@pytest.mark.parametrize(
    "algo,given,said",
    [
        ("spectrm", {}, "did you mean spectrum"),
        ("spectrum", {"W": 1}, "has no W.*it has"),
        ("spectrum", {"w": 2}, "algo.w"),
        ("deepcache", {}, "is no U-Net"),
        ("spectrum", {"site": "last_blok"}, "did you mean last_block"),
    ],
)
def test_bad_input_is_one_line(pipe, algo, given, said):
    with (
        pytest.raises(UserError, match=said) as error,
        spectrum_bench.accelerate(pipe, algo, num_inference_steps=8, **given) as run,
    ):
        run("a red ring", output_type="latent", **CALL)
    assert "\n" not in str(error.value)


def test_a_hydra_application_of_ones_own_is_left_alone(pipe, tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        own = GlobalHydra.instance().hydra
        spectrum_bench.accelerate(pipe, "spectrum", num_inference_steps=8)
        assert GlobalHydra.instance().hydra is own and hydra.compose("mine") == {"a": 1}
    assert GlobalHydra.instance().hydra is None


def test_algorithms_have_a_line_each():
    known = spectrum_bench.algorithms()
    assert set(known) == {path.stem for path in (ROOT / "configs/algo").glob("*.yaml")}
    assert all(line and "\n" not in line for line in known.values())
    assert "2603.01623" in known["spectrum"] and "as published code" in known["spectrum"]
