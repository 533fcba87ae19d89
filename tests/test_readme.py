"""What the README tells people to type must work."""

import re
import shlex

import pytest

import evaluate
import report
from spectrum_bench import arguments, forecasters, jobs, paper, run
from spectrum_bench.cli import check_words
from spectrum_bench.models import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
COMMANDS += re.findall(r"`((?:python|bash) [^`]+)`", README)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_scripts_and_keys_that_exist(command):
    words = shlex.split(command)
    if words[0] in ("python", "bash"):
        assert (ROOT / words[1]).is_file()
    if words[1:2] == ["src/text_to_image.py"] and "algo=damped" not in words:
        check_words("base", words[2:])
    if words[1:2] == ["src/text_to_video.py"]:
        check_words("video", words[2:])
    if words[1:2] and words[1] in ("src/calibrate.py", "src/tune.py"):
        check_words(words[1][4:-3], words[2:])
    if words[1:2] == ["src/evaluate.py"] and words[2:] != ["--check"]:
        arguments.parse(words[2:], "", evaluate.OPTIONS)
    if words[1:2] == ["src/report.py"]:
        arguments.parse(words[2:], "", report.OPTIONS)
    if words[1:2] == ["src/reproduce.py"]:
        assert not words[2:] or paper.read_plans(words[2])


def test_the_algorithm_in_twenty_lines(compose, weights, tmp_path, monkeypatch):
    code, yaml = blocks("python")[0], blocks("yaml")[0]
    assert len((code + yaml).splitlines()) <= 20
    scope = {}
    exec(code, vars(forecasters), scope)  # as if it were appended to the file
    monkeypatch.setattr(forecasters, "damped", scope["damped"], raising=False)
    (tmp_path / "configs/algo").mkdir(parents=True)
    (tmp_path / "configs/algo/damped.yaml").write_text(yaml)
    (tmp_path / "prompts.txt").write_text("a red ring\n")
    words = [f"hydra.searchpath=[file://{tmp_path}/configs]", "algo=damped", "num_inference_steps=9"]
    words += [f"model.repo={weights}", f"prompt_file={tmp_path}/prompts.txt", f"output_base_path={tmp_path}"]
    run.main(compose(*words, "exp_name=x", "warmup_samples=0"))
    record = jobs.read_records(tmp_path / "x")[0]
    assert record.algo == "damped" and record.forecaster == "damped(damping=0.9)"
    assert record.nfe < 9 and record.cache_bytes == 2 * 64 * 128 * 4


def test_the_table_is_the_one_under_results():
    shown = re.search(r"<!-- table -->\n(.*?)<!-- /table -->", README, re.DOTALL)[1].strip()
    table = (ROOT / "results/tiny/flux/slow/table.md").read_text()
    assert shown and shown == table.split("\n\n")[0].strip()
