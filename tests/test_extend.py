"""The examples of docs/extend.md run as they are printed there. Those of metrics: test_new_metric.py, of a format:
test_report.py."""

import dataclasses
import json
import re
import shlex

import pytest
import yaml
from fabricate import run_script
from forked import Command
from helpers import composed, examples, finish
from safetensors.numpy import load_file

from spectrum_bench.commands.entry import check_words
from spectrum_bench.errors import BadValue
from spectrum_bench.paths import ROOT
from spectrum_bench.reporting import paper
from spectrum_bench.sampling.settings import ModelSettings

SHORT = ["total_prompt_num=1", "warmup_samples=0", "num_inference_steps=12", "output_base_path=out", "device=cpu"]
COMMAND = re.search(r"^PYTHONPATH=\. python (src/text_to_image.py .*)$", (ROOT / "docs/extend.md").read_text(), re.M)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the examples, in a folder that otherwise holds what a checkout has."""
    place = tmp_path_factory.mktemp("mine")
    for name in ("src", "configs", "assets", "prompts"):
        (place / name).symlink_to(ROOT / name)
    for name, code in examples().items():
        if name.startswith(("my_", "record.py")):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(code)
    return place


def python(folder, script, *words):
    finish(Command(folder / script, *words, cwd=folder, PYTHONPATH="."))


@pytest.mark.slow
def test_files_of_your_own(folder):
    """The forecaster by the command that is printed; then mask, gates, sites and model."""
    python(folder, *shlex.split(COMMAND), *SHORT, "exp_name=printed")
    sweep = ["schedule=growing,moved,spreads", "site=gain", "model=my_flux"]
    python(folder, *shlex.split(COMMAND), *SHORT, *sweep, "exp_name=${hydra:runtime.choices.schedule}", "-m")
    python(folder, *shlex.split(COMMAND), *SHORT, "site=feed_forward", "exp_name=feed_forward")
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("out/*/records.jsonl")}
    assert records["feed_forward"]["site"] == "FeedForward" and records["feed_forward"]["cache_bytes"] > 0
    assert records["printed"]["forecaster"] == "halfway(share=0.5)" and records["printed"]["site"] == "LastBlock"
    assert records["growing"]["computed_steps"] == [0, 1, 2, 4, 7, 9]
    assert 1 < records["moved"]["nfe"] < 12 and 1 < records["spreads"]["nfe"] < 12
    swept = [records[name] for name in ("growing", "moved", "spreads")]
    assert {(record["model"], record["site"]) for record in swept} == {("my_flux", "Gain")}


@pytest.mark.slow
def test_an_observer_keeps_features(folder):
    python(folder, "record.py")
    kept = load_file(folder / "features.safetensors")
    assert len(kept) == 20 and {feature.shape for feature in kept.values()} == {(1, 64, 128)}


WRONG_YAMLS = {  # file below my_configs -> (its text, words, what is said)
    "algo/bare.yaml": (
        "defaults:\n  - site/last_block\n  - override /schedule@_global_.schedule: adaptive_window\nname: bare\n",
        ["algo=bare"],
        "algo=site/last_block: write '- override /site@_global_.site: last_block' into its defaults",
    ),
    "algo/short.yaml": (
        "defaults:\n  - override /schedule: adaptive_window\nname: short\n",
        ["algo=short"],
        "write '- override /schedule@_global_.schedule: <name>' into its defaults",
    ),
    "algo/nameless.yaml": (
        "defaults:\n  - override /site@_global_.site: last_block\n"
        "forecaster: {_target_: spectrum_bench.forecasters.reuse, _partial_: true}\n",
        ["algo=nameless"],
        "algo.name is missing: write 'name: <its file's name>' into the YAML",
    ),
    "algo/nowhere.yaml": (
        "name: nowhere\nforecaster: {_target_: spectrum_bench.forecasters.reuse, _partial_: true}\n",
        ["algo=nowhere"],
        "algo=nowhere has a forecaster and no site, so that nothing would be cached: add "
        "'- override /site@_global_.site: last_block' to the defaults of its YAML",
    ),
    "schedule/whole.yaml": (
        "_target_: spectrum_bench.schedules.power_law\npasses: 6\n",
        ["algo=reuse", "schedule=whole"],
        "power_law is missing 1 required positional argument: 'T': add '_partial_: true' to its node",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", WRONG_YAMLS)
def test_what_is_left_out_of_a_yaml_is_told(tmp_path, file):
    text, words, told = WRONG_YAMLS[file]
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(text)
    command = ["text_to_image.py", f"hydra.searchpath=[file://{tmp_path}]", *words, f"output_base_path={tmp_path}/out"]
    done = run_script(*command)
    assert done.returncode == 1 and told in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_launchers_preset(folder):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install hydra-joblib-launcher==1.2.0")
    words = [f"hydra.searchpath=[file://{folder}/my_configs]", "hydra/launcher=four_at_once"]
    check_words("base", words)
    composed(*words)
    preset = yaml.safe_load((folder / "my_configs/hydra/launcher/four_at_once.yaml").read_text())
    assert preset["n_jobs"] == 4


def test_a_papers_table(tmp_path, monkeypatch):
    code = examples()
    for name in ("configs/experiment/table1_mine.yaml", "results/paper/mine/table1.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(code[name])
    monkeypatch.setattr(paper, "EXPERIMENTS", tmp_path / "configs/experiment")
    monkeypatch.setattr(paper, "CITED", tmp_path / "results/paper")
    (plan,) = paper.read_plans("table1_mine", "tiny-flux")
    assert [run.name for run in plan.runs] == ["nocache", "halfway"] and plan.source == "mine"
    assert plan.runs[0].cited is None and plan.runs[1].cited["psnr"] == "21.3"
    for run in plan.runs:
        check_words("base", [f"model={plan.model}", *run.words])


def test_every_key_of_a_model_is_listed_with_its_default():
    listed = yaml.safe_load(examples()["every key of a model"])
    fields = {entry.name: entry for entry in dataclasses.fields(ModelSettings)}
    known = {name for name in fields if name not in ("name", "weights", "extra")}
    assert set(listed) == known
    plain = ModelSettings.from_config({"name": "mine"})
    values = {key: getattr(plain, key) for key in known}
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()} == listed
    assert ModelSettings.from_config({"name": "mine"} | listed) == plain


def test_a_revision_is_a_commit():
    with pytest.raises(BadValue, match="model.revision=main is no commit: write its 40 hexadecimal digits"):
        ModelSettings.from_config({"name": "mine", "revision": "main"})
