"""A finished run is made anew in part: what was sent is confirmed, and what was changed is told."""

import json

import pytest
import yaml
from helpers import composed

from spectrum_bench.commands import evaluate, verify
from spectrum_bench.commands.run import sample
from spectrum_bench.errors import SOME_FAILED, UserError
from spectrum_bench.lab.verify import spread

pytestmark = pytest.mark.slow
STEPS = 6


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A run of two prompts and its scores, as an author sends it: without samples."""
    home = tmp_path_factory.mktemp("sent")
    (home / "prompts.txt").write_text("a large red ring on a gray background\na small blue star on a navy background\n")
    words = [f"prompt_file={home}/prompts.txt", f"output_base_path={home}", f"num_inference_steps={STEPS}"]
    words += ["model=tiny-flux", "device=cpu"]
    for algo in ("nocache", "fora"):
        assert sample(composed(*words, f"algo={algo}", f"exp_name={algo}")) == 0
    evaluate.main([f"{home}/fora", f"reference={home}/nocache", "metrics=psnr"])
    for path in (home / "fora/samples").iterdir():
        path.unlink()
    files = {name: (home / "fora" / name).read_text() for name in ("config.yaml", "records.jsonl", "metrics.csv")}
    yield home / "fora", files


@pytest.fixture
def run(sent):
    """The folder, as it was sent."""
    folder, files = sent
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_what_was_sent_is_confirmed(run, capsys):
    verify.main([str(run), "prompts=9", "device=cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1].endswith("2 of 2 samples are as sent")
    assert all("the same bits, the same steps, PSNR" in line for line in lines[:2])


def other_bits(run):
    """As on other hardware: another hash of the first sample."""
    text = (run / "records.jsonl").read_text()
    at = text.index('"sha256": "') + len('"sha256": "')
    (run / "records.jsonl").write_text(text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :])


def other_steps(run):
    other_bits(run)
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    for line in lines:
        line["computed_steps"][-1] = STEPS - 1
    (run / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def other_score(run):
    other_bits(run)
    head, *rows = (run / "metrics.csv").read_text().splitlines()
    cells, at = rows[0].split(","), head.split(",").index("psnr")
    cells[at] = str(float(cells[at]) + 1)
    (run / "metrics.csv").write_text("\n".join([head, ",".join(cells), *rows[1:]]) + "\n")


def other_constant(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["schedule"]["interval"] += 1
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_other_bits_with_the_same_steps_and_score_are_as_sent(run, capsys):
    other_bits(run)
    verify.main([str(run), "prompts=1", "device=cpu"])
    assert "other bits, the same steps, PSNR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_steps, "OTHER STEPS"),
        (other_score, "NOT AS SENT"),
        (other_constant, "config.yaml is not that of this sample's id"),
    ],
)
def test_what_was_changed_is_told(run, capsys, change, words):
    change(run)
    with pytest.raises(SystemExit) as end:
        verify.main([str(run), "prompts=1", "device=cpu"])
    assert end.value.code == SOME_FAILED and words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("model", {"weights": "0123456789abcdef"}, "other weights"), ("site", {"_target_": "os.system"}, "os.system")],
)
def test_other_weights_and_foreign_code_are_refused_before_a_model_is_loaded(run, key, value, words, monkeypatch):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[key] |= value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("spectrum_bench.lab.verify.remake", None)
    with pytest.raises(UserError, match=words):
        verify.main([str(run), "device=cpu"])


def test_samples_are_spread_from_the_first_to_the_last():
    assert spread(list(range(10)), 4) == [0, 3, 6, 9] and spread([1, 2], 4) == [1, 2]
