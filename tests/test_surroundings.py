"""What a machine may lack: a terminal that shows UTF-8, a home folder, ffmpeg."""

import pwd
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from helpers import ROOT

from spectrum_bench.commands import ending
from spectrum_bench.errors import MetricUnavailable, UserError
from spectrum_bench.paths import environment_with_package, from_home, locate, with_tilde
from spectrum_bench.sampling import media
from spectrum_bench.scoring.metrics import METRICS, isolated
from spectrum_bench.scoring.metrics.contracts import ModelFacts

OLD_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SHOWS_ASCII = [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, OLD_LOCALE]
SAYS = """
from spectrum_bench.commands import ending
from spectrum_bench.errors import UserError
def main(words):
    print("PSNR dB ↑ — 2.67×")
    if words:
        raise UserError("there is no ‘ринг’")
ending.run(main)
"""


@pytest.mark.parametrize("surroundings", SHOWS_ASCII, ids=lambda each: "-".join(each))
def test_a_terminal_shows_what_it_can(surroundings, tmp_path):
    (tmp_path / "says.py").write_text(SAYS, encoding="utf-8")
    say = [sys.executable, tmp_path / "says.py"]
    done = subprocess.run(say, env=environment_with_package() | surroundings, capture_output=True)
    assert done.returncode == 0 and not done.stderr and done.stdout.startswith(b"PSNR dB ? ")
    done = subprocess.run([*say, "wrong"], env=environment_with_package() | surroundings, capture_output=True)
    assert done.returncode == 1 and done.stderr.startswith(b"error: there is no ?") and done.stderr.count(b"\n") == 1


@pytest.fixture
def homeless(monkeypatch):
    """As in a container that runs under a number that /etc/passwd does not hold."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("TORCH_HOME", "VBENCH_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_home_folder_weights_are_missing_and_nothing_is_written(homeless, monkeypatch):
    assert locate("~/prompts.txt") == ROOT / "~/prompts.txt" and from_home("/a") == locate("/a")
    assert with_tilde(from_home("~/.cache/torch")) == "~/.cache/torch"
    for name, facts in {"lpips": ModelFacts(), "imagereward": ModelFacts(), "vbench": ModelFacts(fps=16)}.items():
        with pytest.raises(MetricUnavailable, match=f"{name}: no .*~/.cache/"):
            METRICS[name].scorer(facts)
    monkeypatch.setattr(isolated, "CACHE", from_home("~/.cache/spectrum_bench"))
    with pytest.raises(UserError, match="HOME is not set, so there is no place for ~/.cache"):
        isolated.environment("vbench")


@pytest.fixture
def no_ffmpeg(monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/such/ffmpeg")
    media.check_ffmpeg.cache_clear()
    yield
    media.check_ffmpeg.cache_clear()


def test_a_missing_ffmpeg_is_named_before_a_model_is_loaded(no_ffmpeg, compose, monkeypatch):
    from spectrum_bench.commands import run

    monkeypatch.setattr(run, "identify", lambda model: pytest.fail("the weights are read first"))
    with pytest.raises(
        UserError, match="ffmpeg, .* does not start here: unset IMAGEIO_FFMPEG_EXE, which names /no/such"
    ):
        run.prepare(compose("model=tiny-wan", config_name="video"))


def test_a_missing_ffmpeg_is_no_damage_of_a_clip(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(media.encode(np.zeros((3, 16, 16, 3), np.uint8), 8)[".mp4"])
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/such/ffmpeg")
    media.check_ffmpeg.cache_clear()
    with pytest.raises(UserError, match="does not start here") as told:
        media.read(path)
    assert not isinstance(told.value, media.Unreadable)
    media.check_ffmpeg.cache_clear()


def test_a_python_without_the_packages_is_told_what_to_type(capsys):
    """A newcomer types `python src/try.py` outside of .venv. A module of ours that is missing is a bug."""
    with pytest.raises(SystemExit), ending.one_line():
        raise ModuleNotFoundError("No module named 'hydra'", name="hydra")
    told = capsys.readouterr().err
    assert told.startswith("error: hydra is missing in ") and "source .venv/bin/activate" in told
    with pytest.raises(ModuleNotFoundError), ending.one_line():
        raise ModuleNotFoundError("No module named 'spectrum_bench.nowhere'", name="spectrum_bench.nowhere")


def test_the_packages_that_cannot_be_missing_are_those_of_the_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in project["dependencies"]}
    imported = {"hydra_core": "hydra", "Jinja2": "jinja2", "pillow": "PIL", "PyYAML": "yaml"}
    assert {imported.get(name, name) for name in names} == ending.NEEDED
