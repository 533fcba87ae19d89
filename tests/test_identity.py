"""A sample's id: names and constants, whatever becomes of the code."""

import json
from dataclasses import replace

import pytest
import yaml
from helpers import settings

from spectrum_bench.commands import run
from spectrum_bench.errors import UserError
from spectrum_bench.sampling import identity as ids
from spectrum_bench.sampling.identity import canonical, identity, sample_id
from spectrum_bench.sampling.records import read_records
from spectrum_bench.sampling.settings import MOVED, Part, RunSettings

FROZEN = {  # change one only on purpose: every finished run of that method is made again
    "algo=spectrum": "8032091b399c5ddc",
    "algo=teacache": "53b38490c8f74812",
    "algo=fora": "53bb86088494c971",
    "algo=duca": "bc64d80fb7c4a977",
    "algo=nocache": "008fa163b3f251eb",
}


def of(*words: str) -> str:
    given = settings(*words)
    given = replace(given, model=replace(given.model, weights="0123456789abcdef"))
    return sample_id(identity(given), "a red ring", 42, 0)


@pytest.mark.parametrize("word", FROZEN)
def test_ids_are_frozen(word):
    assert of(word) == FROZEN[word]


@pytest.mark.parametrize(
    "one,other",
    [
        (["algo.w=1"], ["algo.w=1.0"]),
        (["window_size=2"], ["window_size=2.0"]),
        (["model.arguments.guidance_scale=3"], ["model.arguments.guidance_scale=3.0"]),
        (["model.note=x"], ["model.note=y"]),
        (["model.repo=here"], ["model.repo=there"]),
        (["device=cpu"], ["threads=2"]),
        ([], ["keep_latents=1"]),
    ],
    ids=str,
)
def test_what_decides_no_pixel_changes_no_id(one, other):
    assert of(*one) == of(*other)


@pytest.mark.parametrize(
    "words",
    [
        ["algo.w=0.5"],
        ["algo.lam=0.2"],
        ["flex_window=3"],
        ["num_inference_steps=28"],
        ["model.arguments.guidance_scale=3"],
        ["model.width=128"],
        ["site=stack_residual"],
        ["runtime.batch_size=2"],
        ["+site.revision=2"],
        ["+algo.forecaster.revision=2"],
    ],
    ids=str,
)
def test_what_decides_pixels_changes_the_id(words):
    assert of(*words) != of()


def test_a_module_may_move(monkeypatch):
    part = Part("spectrum_bench.schedules.uniform", {"interval": 4}, True)
    monkeypatch.setattr(ids, "defaults", lambda part: {})
    assert ids._part(part) == ids._part(replace(part, target="somewhere.else_.uniform"))
    for old, new in MOVED.items():
        assert Part.from_node({"_target_": old}) == Part.from_node({"_target_": new})


def test_a_part_and_a_constant_may_be_renamed(monkeypatch):
    before = ids._part(Part("spectrum_bench.schedules.uniform", {"interval": 4, "warmup": 1}))
    monkeypatch.setattr(ids, "defaults", lambda part: {})
    monkeypatch.setattr(ids, "RENAMED", {"evenly": "uniform", "evenly.gap": "interval"})
    assert ids._part(Part("spectrum_bench.schedules.evenly", {"gap": 4, "warmup": 1})) == before


def test_a_key_may_be_added(monkeypatch):
    before = ids._part(Part("spectrum_bench.schedules.uniform", {"interval": 4, "warmup": 1}))
    monkeypatch.setattr(ids, "ADDED", {"uniform.offset": 0})
    assert ids._part(Part("spectrum_bench.schedules.uniform", {"interval": 4, "warmup": 1, "offset": 0})) == before
    assert ids._part(Part("spectrum_bench.schedules.uniform", {"interval": 4, "warmup": 1, "offset": 1})) != before


def test_a_default_of_the_code_counts(monkeypatch):
    """A constant that the YAML leaves out is in the id, so that another default is another sample."""
    assert ids._part(Part("spectrum_bench.schedules.uniform", {"interval": 4}))["warmup"] == 1


def test_numbers_have_one_form():
    given = {"a": 1.0, "b": (True, 2.5, -0.0), "c": {"d": 3e0}}
    assert json.dumps(canonical(given)) == '{"a": 1, "b": [true, 2.5, 0], "c": {"d": 3}}'  # where 1 and 1.0 differ
    assert canonical(True) is True


def test_settings_survive_their_own_configuration():
    for words in (["algo=duca"], ["algo=teacache"], ["algo=nocache"], ["model=tiny-wan"]):
        given = settings(*words, config_name="video" if "wan" in words[0] else "base")
        assert RunSettings.from_config(given.to_config()) == given


def test_the_same_number_written_otherwise_is_not_made_again(compose, weights, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a red ring\n")
    words = [f"model.repo={weights}", f"prompt_file={tmp_path}/p.txt", f"output_base_path={tmp_path}/out"]
    words += ["exp_name=x", "num_inference_steps=6", "warmup_samples=0"]
    run.main(compose("algo.w=1.0", "model.arguments.guidance_scale=3.0", "window_size=2.0", *words))
    run.main(compose("algo.w=1", "model.arguments.guidance_scale=3", *words))
    assert "1 samples, 1 of them finished" in capsys.readouterr().out


def test_a_run_of_the_older_kind_is_set_aside(compose, weights, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a red ring\n")
    words = [f"model.repo={weights}", f"prompt_file={tmp_path}/p.txt", f"output_base_path={tmp_path}/out"]
    words += ["exp_name=x", "num_inference_steps=6", "warmup_samples=0"]
    run.main(compose(*words))
    path = tmp_path / "out/x/config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if key not in ("schema", "identity")}))
    run.main(compose(*words))
    captured = capsys.readouterr()
    assert "starts anew: an older version made it (schema 1)" in captured.err and captured.err.count("\n") == 1
    assert "1 samples, 0 of them finished" in captured.out
    assert len(read_records(tmp_path / "out/x.schema1")) == len(read_records(tmp_path / "out/x")) == 1
    path.write_text(yaml.safe_dump(config | {"schema": 3}))
    with pytest.raises(UserError, match="newer version"):
        run.main(compose(*words))
