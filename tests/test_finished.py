"""A run that has nothing to do says what it would say anyway, and imports nothing of the model for it."""

import subprocess
import sys

import pytest
from helpers import composed

from spectrum_bench.commands import run
from spectrum_bench.commands.entry import check_words
from spectrum_bench.errors import SOME_FAILED
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling import state
from spectrum_bench.sampling.records import Failure, read_records, save_failure

pytestmark = pytest.mark.slow


class Built(Exception):
    """The long way was taken."""


@pytest.fixture
def done(words, monkeypatch):
    """The words of a finished run, after which nobody may build an algorithm."""
    run.main(composed("algo=spectrum", *words))

    def build(settings):
        raise Built

    monkeypatch.setattr(run, "build", build)
    return ["algo=spectrum", *words]


def test_it_says_what_the_long_way_says(done, capsys, monkeypatch):
    capsys.readouterr()
    run.main(composed(*done))
    short = capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(run, "tell_finished", lambda *_: None)
    run.main(composed(*done))
    assert short == capsys.readouterr().out and "2 samples, 2 of them finished" in short


@pytest.mark.parametrize("word", ["algo.w=0.25", "num_inference_steps=9", "threads=2", "total_prompt_num=1", "seed=7"])
def test_other_settings_take_the_long_way(done, word):
    with pytest.raises(Built):
        run.main(composed(*done, word))


def test_other_code_takes_the_long_way(done, monkeypatch):
    monkeypatch.setattr(state, "sources_hash", lambda: "0" * 12)
    with pytest.raises(Built):
        run.main(composed(*done))


@pytest.mark.parametrize("lost", ["samples/*.png", "records/*.json", "config.yaml", "cost.json"])
def test_a_lost_file_takes_the_long_way(done, tmp_path, lost):
    next((tmp_path / "out/x").glob(lost)).unlink()
    with pytest.raises(Built):
        run.main(composed(*done))


def test_a_method_of_somebody_else_takes_the_long_way(done, monkeypatch):
    """The records name the package's sources, not theirs."""
    monkeypatch.setattr(state, "_is_ours", lambda settings: False)
    with pytest.raises(Built):
        run.main(composed(*done))


def test_a_failed_sample_is_told_and_not_tried(done, tmp_path, capsys):
    first = read_records(tmp_path / "out/x")[0]
    save_failure(tmp_path / "out/x", Failure(first.id, 0, first.prompt, first.seed, "out of memory"))
    with pytest.raises(SystemExit, match=str(SOME_FAILED)):
        run.main(composed(*done))
    out, err = capsys.readouterr()
    assert "2 samples, 1 of them finished" in out and "failed: prompt 0: out of memory" in err
    with pytest.raises(Built):
        run.main(composed(*done, "retry_failed=true"))


@pytest.mark.slow
def test_neither_torch_nor_diffusers_is_imported(words):
    def imported():
        command = [sys.executable, "-X", "importtime", ROOT / "src/text_to_image.py", *words]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
        return {line.rpartition("|")[2].strip() for line in lines}

    assert {"torch", "diffusers"} <= imported()
    assert not {"torch", "diffusers", "transformers", "huggingface_hub"} & imported()


def test_help_is_the_template_with_the_keys_that_were_composed(capsys):
    with pytest.raises(SystemExit) as ended:
        check_words("base", ["algo=taylorseer", "seed=7", "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and "model=flux algo=spectrum" in told and "algo: adacache" in told
    assert "seed: 7" in told and "name: taylorseer" in told and "hydra:" not in told and "$" in told
    with pytest.raises(SystemExit) as ended:
        check_words("base", ["algo=taylorsee", "--help"])
    assert ended.value.code == 1 and "did you mean taylorseer" in capsys.readouterr().err
