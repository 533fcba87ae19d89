"""Metrics in environments of their own: the runner with a script of the test's, VBench's formula, what is missing."""

import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import fabricate
import numpy as np
import pytest
import torch

from spectrum_bench.errors import BadValue, MetricUnavailable
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.metrics import METRICS, chosen, imagereward, isolated, vbench
from spectrum_bench.scoring.metrics.contracts import ModelFacts
from spectrum_bench.scoring.metrics.isolated import header, score_clipiqa, score_musiq, score_vbench

PROMPTS = fabricate.captions(4)
SCRIPT = """
import json, os, sys
manifest, results = sys.argv[1:3]
limit = int(os.environ.get("LIMIT", "99"))
with open(results, "a") as out:
    for n, line in enumerate(open(manifest)):
        sample = json.loads(line)
        if n == limit:
            out.write('{"id": "cut o'); out.flush(); os._exit(3)
        if "star" in sample["prompt"] and "fora" in sample["path"]:
            found = {"error": "a star"}
        else:
            found = {"imagereward": len(sample["prompt"]) / 10 - ("fora" in sample["path"])}
        print(json.dumps({"id": sample["id"]} | found), file=out, flush=True)
        open(os.environ["LOG"], "a").write(sample["path"] + "\\n")
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A reference and an experiment, an ImageReward that is a toy, and the list of what it was asked to score."""
    (tmp_path / "score_imagereward.py").write_text(SCRIPT)
    monkeypatch.setattr(header, "SCRIPTS", tmp_path)
    monkeypatch.setattr(isolated, "environment", lambda name: Path(sys.executable))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    clean = fabricate.pictures(PROMPTS)
    folders = [
        fabricate.experiment(tmp_path / "nocache", PROMPTS, clean),
        fabricate.experiment(tmp_path / "fora", PROMPTS, fabricate.noisy(clean, 5), "fora", 14),
    ]
    reference, experiment = map(read_experiment, folders)

    def evaluate():
        (tmp_path / "log").write_text("")
        return next(evaluation.evaluate([experiment], reference, "psnr,imagereward"))[1]

    return evaluate, tmp_path


def test_scores_are_kept_and_failures_named(runs, caplog):
    evaluate, folder = runs
    stars = sum("star" in prompt for prompt in PROMPTS)
    assert 0 < stars < 4
    found = evaluate()["metrics"]["imagereward"]
    assert found["n"] == 4 - stars and found["reference"]["n"] == 4
    assert found["difference"]["mean"] == pytest.approx(-1)
    errors = [line for line in caplog.messages if "a star" in line]
    assert len(errors) == stars and all("fora" in line and line.startswith("imagereward: ") for line in errors)
    assert len((folder / "log").read_text().split()) == 8
    caplog.clear()
    evaluate()  # what was scored is not scored again; what failed is
    assert len((folder / "log").read_text().split()) == stars
    assert caplog.text.count("a star") == stars  # not once more for each earlier time
    assert not list(folder.rglob("*.manifest"))


def test_a_script_that_dies_loses_neither_its_work_nor_the_other_metrics(runs, monkeypatch):
    evaluate, folder = runs
    monkeypatch.setenv("LIMIT", "3")
    found = evaluate()["metrics"]
    assert "its script failed" in found["imagereward"]["unavailable"] and found["psnr"]["n"] == 4
    monkeypatch.delenv("LIMIT")
    assert evaluate()["metrics"]["imagereward"]["n"] > 0
    finished = sum("star" not in prompt for prompt in PROMPTS[:3])
    assert finished
    assert len((folder / "log").read_text().split()) == 8 - finished
    monkeypatch.setenv("LIMIT", "0")
    assert evaluate()["metrics"]["imagereward"].get("n") is None
    monkeypatch.delenv("LIMIT")
    stars = sum("star" in prompt for prompt in PROMPTS)
    assert evaluate()["metrics"]["imagereward"]["n"] == 4 - stars


def test_scores_of_other_settings_of_one_script_are_kept_apart(runs):
    """ImageReward with 512 tokens has a file of its own, and the earlier one stays as it is."""
    evaluate, folder = runs
    evaluate()
    kept = (folder / "fora/scores/imagereward.jsonl").read_bytes()
    script = (folder / "score_imagereward.py").read_text()
    (folder / "score_imagereward.py").write_text(script.replace('"imagereward":', 'f"imagereward_{sys.argv[-1]}":'))
    items = [(path, "a ring") for path in sorted((folder / "fora/samples").glob("*.png"))]
    found = imagereward.scorer([], items)
    assert found == [{"imagereward_512": 0.6 - 1}] * 4
    assert (folder / "fora/scores/imagereward.jsonl").read_bytes() == kept
    assert len((folder / "fora/scores/imagereward_512.jsonl").read_text().splitlines()) == 4


def test_a_changed_sample_is_scored_again(runs):
    evaluate, folder = runs
    evaluate()
    changed = sorted((folder / "nocache" / "samples").glob("*.png"))[0]
    fabricate.Image.fromarray(fabricate.pictures(["another"])[0]).save(changed)
    evaluate()
    assert str(changed) in (folder / "log").read_text()


@pytest.mark.slow
def test_an_environment_is_made_once_and_again_when_its_packages_change(tmp_path, monkeypatch):
    def declare(*packages):
        text = f"# /// script\n# dependencies = {json.dumps(packages)}\n# ///\n"
        (tmp_path / "score_toy.py").write_text(text)

    monkeypatch.setattr(isolated, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(header, "SCRIPTS", tmp_path)
    declare()
    assert not isolated.is_made("toy")
    python = isolated.environment("toy")
    assert python.is_file() and isolated.is_made("toy") and isolated.environment("toy") == python
    declare("/no/such/package")
    assert not isolated.is_made("toy")
    with pytest.raises(MetricUnavailable, match="toy: its environment could not be made .*no/such/package"):
        isolated.environment("toy")
    assert not isolated.is_made("toy")


def test_a_script_says_what_it_needs():
    scripts = {metric.environment for metric in METRICS.values() if metric.environment}
    assert scripts >= {"imagereward", "vbench"}
    for name in scripts:
        head = header.read(name)
        assert head.version("torch") and head.version("no-such-package") is None
        assert all(re.fullmatch(r"[\w-]+(==[\d.]+|>=\d+)", package) for package in head.dependencies)
        assert head.weights and not [entry.path for entry in head.weights if "{" in str(entry.path)]
    assert header.read("vbench").version("vbench") == "0.1.5"


def test_without_weights_they_are_unavailable(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        MetricUnavailable, match="imagereward: no ~/.cache/ImageReward/ImageReward.pt; python download.py"
    ):
        METRICS["imagereward"].scorer(ModelFacts())
    with pytest.raises(MetricUnavailable, match="vbench: no ~/.cache/vbench/.*; python download.py metrics=vbench"):
        METRICS["vbench"].scorer(ModelFacts(fps=16))
    with pytest.raises(MetricUnavailable, match="vbench: these are pictures"):
        METRICS["vbench"].scorer(ModelFacts())
    with pytest.raises(MetricUnavailable, match="imagereward: these are clips"):
        METRICS["imagereward"].scorer(ModelFacts(fps=16))


def test_vbenchs_quality_score():
    """By hand: all dimensions at the top of their range give 1, at the bottom 0; each counts by its weight."""
    top = {name: high for name, (_, high, _) in vbench.QUALITY.items()}
    bottom = {name: low for name, (low, _, _) in vbench.QUALITY.items()}
    assert vbench.quality(top) == pytest.approx(1) and vbench.quality(bottom) == pytest.approx(0)
    assert vbench.quality(bottom | {"dynamic_degree": 1.0}) == pytest.approx(0.5 / 6.5)
    assert vbench.quality(bottom | {"motion_smoothness": 0.85175}) == pytest.approx(0.5 / 6.5)
    assert vbench.quality(top | {"dynamic_degree": 0.0}) == pytest.approx(6 / 6.5)
    assert math.isnan(vbench.quality(top | {"imaging_quality": math.nan}))
    assert set(vbench.QUALITY) == set(vbench.DIMENSIONS) == set(METRICS["vbench"].details)


def test_vbenchs_standard_score_is_made_of_each_dimensions_own_prompts():
    """Against the formula as the official script has it: means over each dimension's clips first, then their sum."""
    rng = np.random.default_rng(0)
    found = [{name: rng.random() for name in vbench.DIMENSIONS} for _ in range(40)]
    found = [each | {"vbench": vbench.quality(each)} for each in found]
    asked = [
        {vbench.DIMENSIONS[i % 7]} | ({vbench.DIMENSIONS[5], vbench.DIMENSIONS[6]} if i % 3 else set())
        for i in range(36)
    ] + [set()] * 4
    found[8] = dict.fromkeys(found[8], math.nan)  # could not be scored
    rows = vbench.standard(found, asked)
    assert [math.isnan(row["vbench_standard"]) for row in rows] == [i in (8, *range(36, 40)) for i in range(40)]
    pairs = list(zip(found, asked, strict=True))
    means = {n: np.mean([f[n] for f, dims in pairs if n in dims and f[n] == f[n]]) for n in vbench.DIMENSIONS}
    assert np.nanmean([row["vbench_standard"] for row in rows]) == pytest.approx(vbench.quality(means))
    for name in vbench.DIMENSIONS:
        assert np.nanmean([row[f"standard_{name}"] for row in rows]) == pytest.approx(means[name])
    with pytest.raises(MetricUnavailable, match="vbench_standard: no clip .* for imaging_quality; .* prompts=vbench"):
        vbench.standard(found, [dims - {"imaging_quality"} for dims in asked])


@pytest.mark.skipif(not isolated.is_made("vbench"), reason="the environment of vbench is not made")
def test_vbenchs_own_list_of_prompts():
    """The counts that its README has: 944 prompts, of which 326 are for the quality dimensions."""
    asked = vbench.prompts_of_dimensions()
    assert len(asked) == 944 and sum(map(bool, asked.values())) == 326
    counts = [sum(name in dims for dims in asked.values()) for name in vbench.DIMENSIONS]
    assert counts == [72, 86, 75, 72, 72, 93, 93]


def test_a_clip_that_vbench_cannot_take_is_found_by_halves(tmp_path):
    class Judge:
        asked = []

        def evaluate(self, videos_path, name, dimension_list, **how):
            clips = [str(path) for path in Path(videos_path).iterdir()]
            self.asked.append(len(clips))
            if any(clip.endswith("5.mp4") for clip in clips):
                raise RuntimeError("no stream")
            each = [{"video_path": clip, "video_results": 50.0} for clip in clips]
            found = Path(self.output_path) / f"{name}_eval_results.json"
            found.write_text(json.dumps({dimension_list[0]: [1, each]}))

    clips = {str(i): f"/{i}.mp4" for i in range(8)}
    found = score_vbench.evaluate(Judge(), "imaging_quality", clips, tmp_path / "imaging_quality")
    assert found == dict.fromkeys(clips, 0.5) | {"5": "imaging_quality: RuntimeError: no stream"}
    assert Judge.asked == [8, 4, 4, 2, 1, 1, 2]


def test_vbench_writes_as_it_goes(tmp_path, monkeypatch):
    """What was written before a kill is not lost: clips go through all dimensions part by part."""

    class VBench:
        def __init__(self, device, info, folder):
            self.folder = Path(folder)

        def evaluate(self, videos_path, name, dimension_list, **how):
            clips = sorted(str(path) for path in Path(videos_path).iterdir())
            if any(clip.endswith("4.mp4") for clip in clips):
                raise SystemExit(137)
            each = [{"video_path": clip, "video_results": float(Path(clip).stem)} for clip in clips]
            results = json.dumps({dimension_list[0]: [1, each]})
            (Path(self.output_path) / f"{name}_eval_results.json").write_text(results)

    package = SimpleNamespace(__file__=str(tmp_path / "vbench/__init__.py"), VBench=VBench)
    monkeypatch.setitem(sys.modules, "vbench", package)
    monkeypatch.setattr(score_vbench, "AT_ONCE", 2)
    manifest, results = tmp_path / "manifest", tmp_path / "results"
    manifest.write_text("".join(json.dumps({"id": str(i), "path": f"/{i}.mp4"}) + "\n" for i in range(5)))
    with pytest.raises(SystemExit):
        score_vbench.main(str(manifest), str(results), str(tmp_path), "a", "b")
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert found == [{"id": str(i), "a": float(i), "b": float(i)} for i in range(4)]


class Brightness:
    """In the place of pyiqa's metrics: the mean of a picture's levels times one weight."""

    def __init__(self, weight=1.0):
        self.net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.net.weight, weight)

    def __call__(self, path):
        with fabricate.Image.open(path) as picture:
            return self.net(torch.tensor([[float(np.mean(picture))]]))


def create_metric(name, **how):
    """As pyiqa's, which fetches what it is not given, and unpickles whatever comes."""
    if name == "musiq":
        assert how == {"pretrained": False}
        return Brightness()
    assert name == "clipiqa" and how.keys() == {"backbone"}
    state = torch.load(how["backbone"], weights_only=True)
    return Brightness(state["module.weight"].item())


@pytest.mark.parametrize("script", [score_musiq, score_clipiqa], ids=["musiq", "clipiqa"])
def test_what_pyiqa_says_is_taken_and_what_it_cannot_read_is_named(script, tmp_path, monkeypatch):
    """With a network of one number in the place of pyiqa's; the true package is in test_true_environments.py."""
    parts = ModuleType("pyiqa.archs.arch_util")
    parts.clean_state_dict = lambda state: {key.removeprefix("module."): tensor for key, tensor in state.items()}
    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    monkeypatch.setitem(sys.modules, "pyiqa.archs", ModuleType("pyiqa.archs"))
    monkeypatch.setitem(sys.modules, "pyiqa.archs.arch_util", parts)
    (picture,) = fabricate.pictures(PROMPTS[:1])
    fabricate.Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    manifest, results, weights = (str(tmp_path / name) for name in ("manifest", "results", "weights.pth"))
    lines = [{"id": name, "path": str(tmp_path / f"{name}.png")} for name in "ab"]
    Path(manifest).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    torch.save({"module.weight": torch.tensor([[0.25]])}, weights)
    script.main(manifest, results, weights)
    one, other = map(json.loads, Path(results).read_text().splitlines())
    name = script.__name__.rpartition("_")[2]
    assert one == {"id": "a", name: pytest.approx(picture.mean() / 4, rel=1e-5)} and other.keys() == {"id", "error"}
    torch.save({"module.weight": torch.ones(2, 1)}, weights)
    with pytest.raises(SystemExit, match="weights.pth does not fit .*; download it again"):
        script.main(manifest, results, weights)


def test_scripts_with_the_same_packages_share_an_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "CACHE", tmp_path)
    assert not isolated.is_made("musiq") and not isolated.is_made("clipiqa")
    made = isolated._folder("musiq")
    made.mkdir()
    (made / "complete").touch()
    assert isolated.is_made("clipiqa") and isolated.environment("clipiqa") == made / "bin/python"
    assert not isolated.is_made("fid")


def test_metrics_are_those_that_are_asked_for_or_that_the_model_names():
    assert chosen(ModelFacts()) == ["psnr", "ssim", "lpips", "caption"]
    assert chosen(ModelFacts(metrics=("clip", "psnr"))) == ["psnr", "clip"]
    assert chosen(ModelFacts(metrics=("clip",)), "vbench,ssim") == ["ssim", "vbench"]
    with pytest.raises(BadValue, match="metrics=psnr,fvd: there is no metric fvd"):
        chosen(ModelFacts(), "psnr,fvd")
    with pytest.raises(BadValue, match="metrics=as:x: there is no table of x: choose of as:taylorseer, "):
        chosen(ModelFacts(), "as:x")
    with pytest.raises(BadValue, match="model.metrics: there is no metric fvd"):
        chosen(ModelFacts(metrics=("fvd",)))


@pytest.mark.slow
def test_the_command_line(tmp_path):
    clean = fabricate.pictures(PROMPTS)
    fabricate.experiment(tmp_path / "nocache", PROMPTS, clean)
    fabricate.experiment(tmp_path / "fora", PROMPTS, fabricate.noisy(clean, 5), "fora", 14)
    words = tmp_path / "fora", f"reference={tmp_path}/nocache"
    done = fabricate.run_script("evaluate.py", *words, "metrics=fvd")
    assert done.returncode == 1 and done.stderr.startswith("error: metrics=fvd: there is no metric fvd: choose of psnr")
    done = fabricate.run_script("evaluate.py", *words, "metrics=psnr")
    assert done.returncode == 0 and json.loads((tmp_path / "fora/summary.json").read_text())["metrics"].keys() == {
        "psnr"
    }
    done = fabricate.run_script("evaluate.py", "--check")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(METRICS)
    assert all(line.startswith(("ready  ", "—      ")) for line in lines) and "ready  psnr" in lines
