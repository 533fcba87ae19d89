"""Published masks: what their names say, against those who publish them where their code is at hand."""

import re

import cache_dit
import numpy as np
import pytest
import yaml
from helpers import composed, settings
from hydra.errors import HydraException

from spectrum_bench import schedules
from spectrum_bench.commands import list_
from spectrum_bench.commands.compose import build
from spectrum_bench.commands.entry import explain
from spectrum_bench.errors import BadValue
from spectrum_bench.paths import ROOT

FOLDER = ROOT / "configs" / "schedule" / "published"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OTHER_STEPS = {"lemica_wan14b-i2v": 40}  # by family; scm names its own
WITHOUT_THE_LAST = ("taylorseer", "spectrum", "l2p")  # nothing there forces it


def read(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_whose_it_is_and_holds_as_many_steps_as_its_name(name):
    text, (family, number) = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), name.rsplit("_", 1)
    node = read(name)
    T = int(number) if family.startswith("scm") else OTHER_STEPS.get(family, 50)
    mask = schedules.published(T, **{key: node[key] for key in ("of", "steps", "T_published")})
    assert node["of"] == name and mask.shape == (T,) and mask[0]
    assert family.startswith("scm") or mask.sum() == int(number)
    assert f": {mask.sum()} of {T} steps.\n" in text.splitlines(keepends=True)[0]
    for fact in ("model", "source", "licence"):
        assert re.search(rf"^# {fact}: \S", text, re.MULTILINE), fact
    assert mask[-1] or name.startswith(WITHOUT_THE_LAST)
    spans = re.search(r"^# span: (\[.*\])", text, re.MULTILINE)
    assert bool(spans) == family.startswith("meancache")
    if spans:  # one a gap; 0 only where the next step is computed
        listed = yaml.safe_load(spans[1])
        assert len(listed) == len(node["steps"]) - 1
        assert all(gap == 1 for gap, span in zip(np.diff(node["steps"]), listed, strict=True) if span == 0)


@pytest.mark.parametrize("steps", [28, 50])
@pytest.mark.parametrize("policy", ["slow", "medium", "fast", "ultra"])
def test_masks_of_cache_dit_are_what_its_code_gives(policy, steps):
    published = schedules.published(steps, **{k: v for k, v in read(f"scm_{policy}_{steps}").items() if k[0] != "_"})
    assert published.astype(int).tolist() == cache_dit.steps_mask(total_steps=steps, mask_policy=policy)


@pytest.mark.parametrize(
    "name,words",
    [
        ("spectrum_14", ["schedule=adaptive_window"]),
        ("spectrum_10", ["schedule=adaptive_window", "flex_window=3.0"]),
        ("taylorseer_flux_10", ["schedule=warm_uniform", "schedule.interval=6", "warmup_steps=3"]),
        ("taylorseer_clips_10", ["schedule=uniform", "schedule.interval=5"]),
    ],
)
def test_masks_of_a_counter_are_what_our_own_counter_gives(name, words):
    counted, published = (
        schedules.plan(build(settings("algo=reuse", *each)).schedule, 50)
        for each in (words, [f"schedule=published/{name}"])
    )
    assert counted.tolist() == published.tolist()


def test_a_published_schedule_is_chosen_and_listed_by_name(capsys):
    given = settings("algo=taylorseer", "schedule=published/meancache_qwen_10")
    assert schedules.plan(build(given).schedule, 50).nonzero()[0].tolist() == [0, 1, 3, 7, 14, 21, 28, 35, 42, 49]
    list_.main(["schedules"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("published/") for line in lines) == len(NAMES)
    assert any(line.startswith("published/meancache_qwen_10 ") and "10 of 50" in line for line in lines)


def test_another_number_of_steps_is_refused_with_the_right_one():
    with pytest.raises(BadValue, match="scm_fast_28 is a mask for num_inference_steps=28, not 50"):
        build(settings("algo=reuse", "schedule=published/scm_fast_28"))
    build(settings("algo=reuse", "schedule=published/scm_fast_28", "num_inference_steps=28"))


def test_a_misspelt_mask_is_told_its_neighbours():
    with pytest.raises(HydraException) as error:
        composed("schedule=published/meancache_quen_10")
    assert "did you mean published/meancache_qwen_10?" in explain("base", error.value)
