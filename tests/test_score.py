"""Scoring what other code made: files pair rightly in the layouts that people have, and wrong pairs are found."""

import csv
import io
import json
import os
import re

import fabricate
import numpy as np
import pytest
from PIL import Image

from spectrum_bench.commands import evaluate, score
from spectrum_bench.errors import UserError
from spectrum_bench.sampling import media
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.foreign import pairing
from spectrum_bench.scoring.metrics.pixel import psnr

PROMPTS = fabricate.captions(12)
PICTURES = fabricate.pictures(PROMPTS)
WORSE = fabricate.noisy(PICTURES, 20)


def short(prompt: str) -> str:
    return re.sub(r"[^a-z]+", "_", prompt)[:60]


# How others name the sample of a prompt: (number, prompt) -> name. The numbers and words are those of their code.
LAYOUTS = {
    # Shenyi-Z/TaylorSeer@288776d, TaylorSeer-FLUX/src/sample.py; as it Tammytcl/FreqCa@e0a4bf3 and
    # Aredstone/L2P-Cache@3df73ce, sample.py, and vipshop/cache-dit@00a2264, bench/bench.py
    "img_12": lambda i, prompt: f"img_{i}",
    # Vchitect/VBench, README: <prompt>-<number of the sample>; as it TaylorSeer-HunyuanVideo/sample_video_vbench.py
    "vbench": lambda i, prompt: f"{prompt}-0",
    "number and words": lambda i, prompt: f"{i:04d}_{short(prompt)}",
    "from one": lambda i, prompt: f"{i + 1}",
    "seed in all": lambda i, prompt: f"sample_{i}_seed42",
    "a folder each": lambda i, prompt: f"prompt{i}/out",
    "cut prompts": lambda i, prompt: prompt[:-3].replace(" ", "_"),
}
# More of them, of which the pairing alone is looked at.
MORE = LAYOUTS | {
    "TaylorSeer-DiT/sample_ddp.py": lambda i, prompt: f"{i:06d}",
    # the number of the sample is its seed
    "TaylorSeer-HunyuanVideo/sample_video.py": lambda i, prompt: (
        f"2025-03-01-10:22:{i + 10}_seed{i % 3}_{prompt[:100].replace('/', '')}"
    ),
    "TaylorSeer-Wan2.1/generate.py": lambda i, prompt: (
        f"t2v-14B_1280*720_1_1_{prompt.replace(' ', '_').replace('/', '_')[:50]}_20250301_1022{i + 10}"
    ),
    # vllm-project/vllm-omni@1aa18b0, benchmarks/diffusion/quantization_quality.py, and
    # examples/offline_inference/text_to_image/text_to_image.py@061771b with several images
    "vllm-omni, benchmark": lambda i, prompt: f"prompt_{i}",
    "vllm-omni, example": lambda i, prompt: f"qwen_image_output_{i}",
}


def write(folder, images, name=LAYOUTS["img_12"], suffix=".png", order=None, **how):
    for i in order if order is not None else range(len(images)):
        path = folder / f"{name(i, PROMPTS[i])}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(path, **how)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


def results(out) -> dict[str, dict[str, str]]:
    return {line["algo"]: line for line in csv.DictReader(io.StringIO((out / "report/table.csv").read_text()))}


TRUE = float(np.mean([psnr(a, b) for a, b in zip(WORSE, PICTURES, strict=True)]))


@pytest.mark.parametrize("layout", ["img_12", "vbench", "a folder each"])
def test_layouts_pair_by_the_prompts(place, layout):
    write(place / "ref", PICTURES, LAYOUTS[layout])
    write(place / "fast", WORSE, LAYOUTS[layout])
    score.main(["fast", "reference=ref", "prompts=prompts.txt", "metrics=psnr"])
    row = results(place / "scored")["fast"]
    assert float(row["psnr"]) == pytest.approx(TRUE) and row["prompts"] == "12"
    records = read_experiment(place / "scored/rows/fast").records
    assert [record.prompt for record in records] == PROMPTS
    assert [record.prompt_index for record in records] == list(range(12))


def test_a_list_tells_what_edits_should_show(place):
    write(place / "ref", PICTURES)
    write(place / "fast", WORSE)
    lines = [{"prompt": f"edit {i}", "target_caption": prompt} for i, prompt in enumerate(PROMPTS)]
    (place / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    score.main(["fast", "reference=ref", "prompts=edits.jsonl", "metrics=psnr"])
    assert [record.caption for record in read_experiment(place / "scored/rows/fast").records] == PROMPTS


@pytest.mark.parametrize("layout", MORE)
def test_a_name_tells_its_prompt(tmp_path, layout):
    names = {tmp_path / str(i): MORE[layout](i, prompt) for i, prompt in enumerate(PROMPTS)}
    _, found = pairing.keys({tmp_path: names}, "auto", PROMPTS)
    assert [key.index for key in found[tmp_path].values()] == list(range(12))
    if layout.endswith("sample_video.py"):
        assert [key.sample for key in found[tmp_path].values()] == [i % 3 for i in range(12)]


def test_with_prompts_each_folder_may_have_its_own_names(tmp_path):
    layouts = {"ref": "img_12", "fast": "vbench", "slow": "TaylorSeer-DiT/sample_ddp.py"}
    folders = {
        tmp_path / folder: {tmp_path / folder / str(i): MORE[layout](i, prompt) for i, prompt in enumerate(PROMPTS)}
        for folder, layout in layouts.items()
    }
    way, found = pairing.keys(folders, "auto", PROMPTS)
    assert way == "prompt or index"
    for own in found.values():
        assert [(key.index, key.sample) for key in own.values()] == [(i, 0) for i in range(12)]
    with pytest.raises(UserError, match="names do not tell"):
        pairing.keys(folders | {tmp_path: {tmp_path / "a": "a", tmp_path / "b": "b"}}, "auto", PROMPTS)


def test_the_only_file_of_each_folder_is_a_pair(place, capsys):
    """UnicomAI/MeanCache@a4f9a38, MeanCache4Qwen-Image/Mc_qwenimage.py: image_nocache.png, image_JVP_cache_25.png."""
    for folder, images, name in (
        ("ref", PICTURES, "nocache"),
        ("b25", WORSE, "JVP_cache_25"),
        ("b10", WORSE, "JVP_10"),
    ):
        write(place / folder, images[:1], lambda i, prompt, name=name: f"image_{name}")
    score.main(["b25", "b10", "reference=ref", "metrics=psnr"])
    assert float(results(place / "scored")["b10"]["psnr"]) == pytest.approx(psnr(WORSE[0], PICTURES[0]))
    assert "by being the only one: 1 pairs" in capsys.readouterr().out
    write(place / "b10", WORSE[:2], lambda i, prompt: f"more_{short(prompt)}")
    with pytest.raises(UserError, match="names do not tell which files are a pair"):
        score.main(["b25", "b10", "reference=ref", "metrics=psnr"])


def test_a_prompt_behind_other_words_is_unclear_where_it_could_be_another(tmp_path):
    prompts = ["a large red ring on a gray background, left", "a large red ring on a gray background, right", "ring"]
    for name in ("wan_a large red ring on a gray back_20250301", "wan_a large red", "wan_spring"):
        with pytest.raises(UserError, match="holds no prompt"):
            pairing.keys({tmp_path: {tmp_path / "a": name}}, "prompt", prompts)
    assert (
        pairing.keys({tmp_path: {tmp_path / "a": "wan_ring_20250301"}}, "prompt", prompts)[1][tmp_path]
        .popitem()[1]
        .index
        == 2
    )


def test_two_folders_with_other_names_pair_by_their_numbers(place):
    write(place / "ref", PICTURES, LAYOUTS["img_12"])
    write(place / "fast", WORSE, LAYOUTS["seed in all"])
    score.main(["fast", "reference=ref", "metrics=psnr"])
    assert float(results(place / "scored")["fast"]["psnr"]) == pytest.approx(TRUE)


def test_evaluate_hands_on_what_other_code_made(place):
    write(place / "ref", PICTURES)
    write(place / "fast", WORSE)
    evaluate.main(["fast", "reference=ref", "metrics=psnr"])
    assert float(results(place / "scored")["fast"]["psnr"]) == pytest.approx(TRUE)
    (place / "ref" / "config.yaml").touch()  # a run of ours that is damaged
    with pytest.raises(UserError, match="no experiment directory in fast"):
        evaluate.main(["fast", "reference=ref", "metrics=psnr"])


def test_equal_names_without_numbers_pair(place, capsys):
    write(place / "ref", PICTURES, lambda i, prompt: short(prompt))
    write(place / "fast", WORSE, lambda i, prompt: short(prompt))
    score.main(["fast", "reference=ref", "metrics=psnr"])
    assert float(results(place / "scored")["fast"]["psnr"]) == pytest.approx(TRUE)
    told = capsys.readouterr().out
    assert "by name: 12 pairs" in told and "nobody told their times" in told and "Latency" not in told


def test_the_time_of_writing_pairs_only_when_it_is_asked_to(place):
    scrambled = {i: f"{chr(97 + 7 * i % 26)}{chr(97 + i)}" for i in range(12)}
    write(place / "ref", PICTURES)
    write(place / "fast", WORSE, lambda i, prompt: scrambled[i])
    for i in range(12):
        os.utime(place / f"ref/img_{i}.png", (1000 + i, 1000 + i))
        os.utime(place / f"fast/{scrambled[i]}.png", (5000 + i, 5000 + i))
    with pytest.raises(UserError, match="names do not tell which files are a pair .*give by=mtime"):
        score.main(["fast", "reference=ref"])
    score.main(["fast", "reference=ref", "by=mtime", "metrics=psnr"])
    assert float(results(place / "scored")["fast"]["psnr"]) == pytest.approx(TRUE)


def test_a_table_of_files_pairs(place):
    write(place / "ref", PICTURES)
    write(place / "fast", WORSE, lambda i, prompt: f"x{11 - i}")
    lines = ["file,index", *(f"img_{i}.png,{i}" for i in range(12)), *(f"fast{i},0" for i in range(2))]
    (place / "pairs.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"pairs.csv does not list x\d+.png"):
        score.main(["fast", "reference=ref", "by=pairs.csv"])
    (place / "pairs.csv").write_text("\n".join([*lines, *(f"x{11 - i},{i}" for i in range(12))]) + "\n")
    score.main(["fast", "reference=ref", "by=pairs.csv", "metrics=psnr"])
    assert float(results(place / "scored")["fast"]["psnr"]) == pytest.approx(TRUE)


def test_several_samples_of_a_prompt_have_numbers(place):
    other = fabricate.pictures([*PROMPTS[1:], PROMPTS[0]])
    for folder, sets in {"ref": (PICTURES, other), "fast": (WORSE, fabricate.noisy(other, 20))}.items():
        for number, images in enumerate(sets):
            write(place / folder, images, lambda i, prompt, number=number: f"{prompt}-{number}")
    score.main(["fast", "reference=ref", "prompts=prompts.txt", "metrics=psnr"])
    row = results(place / "scored")["fast"]
    assert (row["samples"], row["prompts"]) == ("24", "12")


# ---------------------------------------------------------------------------------------------------------------------
# Wrong pairs


@pytest.mark.parametrize("by", ["auto", "name", "index"])
def test_wrong_pairs_are_found(place, by):
    write(place / "ref", PICTURES)
    write(place / "fast", np.roll(WORSE, 1, axis=0))
    with pytest.raises(UserError, match="fast: only .* nearer to their reference than to another one"):
        score.main(["fast", "reference=ref", f"by={by}"])
    assert not (place / "scored/report").exists()


def test_one_wrong_pair_is_noted(place):
    swapped = WORSE.copy()
    swapped[3] = WORSE[7]
    write(place / "ref", PICTURES)
    write(place / "fast", swapped)
    score.main(["fast", "reference=ref", "metrics=psnr"])
    assert "fast: 1 samples are much nearer to another reference" in (place / "scored/report/table.md").read_text()


def test_sizes_must_agree(place):
    write(place / "ref", PICTURES)
    write(place / "fast", np.stack([np.asarray(Image.fromarray(each).resize((32, 32))) for each in WORSE]))
    with pytest.raises(UserError, match="sample 0 of fast is 32x32 and its reference 64x64"):
        score.main(["fast", "reference=ref"])


# ---------------------------------------------------------------------------------------------------------------------
# Coding with loss


def test_what_jpeg_costs_is_measured(place):
    """By hand: the reference, coded as the samples are, against itself."""
    write(place / "ref", PICTURES)
    write(place / "fast", WORSE, suffix=".jpg", quality=80, subsampling=0)
    score.main(["fast", "reference=ref", "metrics=psnr"])
    losses = []
    for picture in PICTURES[:8]:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=80, subsampling=0)
        losses.append(psnr(np.asarray(Image.open(stream)), picture))
    table = (place / "scored/report/table.md").read_text()
    assert "fast: 12 of 12 files are coded with loss (JPG)" in table
    assert f"coded like them is {np.mean(losses):.1f} dB from itself, mean of 8" in table


@pytest.mark.slow
def test_clips_of_any_coding_are_taken(place):
    for name, images, settings in (("ref", PICTURES, media.CLIP), ("fast", WORSE, media.PREVIEW)):
        (place / name).mkdir()
        for i, prompt in enumerate(PROMPTS[:3]):
            frames = np.stack([np.roll(images[i], t, axis=1) for t in range(3)])
            (place / name / f"{prompt}-0.mp4").write_bytes(media._video(frames, 8, settings))
    score.main(["fast", "reference=ref", "metrics=psnr"])
    row = results(place / "scored")["fast"]
    assert 10 < float(row["psnr"]) < TRUE + 3 and row["samples"] == "3"
    assert "3 of 3 files are coded with loss (MP4), which bounds" in (place / "scored/report/table.md").read_text()
    assert read_experiment(place / "scored/reference").facts.fps == 8


# ---------------------------------------------------------------------------------------------------------------------
# Times, and what nobody told


def test_times_give_a_speedup_and_what_is_not_told_is_a_dash(place, capsys):
    write(place / "ref", PICTURES)
    write(place / "fast", WORSE)
    write(place / "gated", WORSE)
    told = {"ref": {"seconds": 4.0, "steps": 50, "passes": 50, "device": "H100"}}
    told["fast"] = {"seconds": [1.0 + 0.002 * i for i in range(12)], "steps": 50, "passes": [13] * 6 + [14] * 6}
    told["fast"]["device"] = "H100"
    (place / "times.json").write_text(json.dumps(told))
    score.main(["fast", "gated", "reference=ref", "times=times.json", "metrics=psnr", "markdown=true"])
    rows = results(place / "scored")
    assert float(rows["fast"]["speedup"]) == pytest.approx(4 / 1.011) and float(rows["fast"]["passes"]) == 13.5
    assert (rows["gated"]["passes"], rows["gated"]["latency_s"], rows["gated"]["cache_bytes"]) == ("", "", "")
    printed = capsys.readouterr().out
    assert "| fast | 13.5/50 | 1.011 " in printed and "| gated | — | — | — |" in printed
    assert "TFLOPs |" not in printed and "`spectrum-bench score fast gated reference=ref" in printed
    assert "whose passes nobody told" in printed and "Sanity, the reference against shuffled" in printed
    assert re.search(rf"\(spectrum-bench \S+, .*numpy {re.escape(np.__version__)}", printed)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "times=times.json"),
        ('["fast"]', 'write {"<folder>"'),
        ('{"fst": 1}', "names fst, which is none of ref, fast"),
        ('{"fast": {"secs": 1}}', "no key secs"),
        ('{"fast": "1"}', "seconds are numbers"),
        ('{"fast": [1, 2]}', "2 seconds for 12 samples"),
        ('{"fast": {"steps": 5, "passes": 6}}', "passes are whole numbers up to steps"),
        ('{"fast": {"steps": 1e9}}', "steps is a whole number"),
        ('{"fast": -1}', "seconds are numbers"),
        ('{"fast": NaN}', "times=times.json"),
    ],
)
def test_wrong_times_are_refused(place, text, message):
    write(place / "ref", PICTURES)
    write(place / "fast", WORSE)
    (place / "times.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        score.main(["fast", "reference=ref", "times=times.json"])


def test_wrong_words_and_folders_are_refused(place):
    write(place / "ref", PICTURES)
    write(place / "fast", WORSE)
    (place / "empty").mkdir()
    (place / "both").mkdir()
    (place / "both/a.png").write_bytes((place / "ref/img_0.png").read_bytes())
    (place / "both/b.mp4").touch()
    (place / "torn").mkdir()
    (place / "torn/img_0.png").write_bytes((place / "ref/img_0.png").read_bytes()[:99])
    for words, message in {
        ("nowhere", "reference=ref"): "there is no folder nowhere",
        ("empty", "reference=ref"): "empty holds no picture and no clip",
        ("both", "reference=ref"): "both holds pictures and clips",
        ("ref", "reference=ref"): "named twice, or is its own reference",
        ("fast", "reference=ref", "by=size"): "by=size is none of name, index, prompt, mtime",
        ("fast", "reference=ref", "by=none.csv"): "there is no by=none.csv",
        ("fast", "reference=ref", "markdown=yes"): "write markdown=true",
        ("fast", "reference=ref", "metrics=fvd"): "there is no metric fvd",
        ("torn", "reference=ref"): "img_0.png is no picture",
        ("fast",): "reference= is missing",
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            score.main(list(words))


def test_it_can_be_said_twice(place):
    """The second time replaces what the first has made, and nothing of the user's."""
    write(place / "ref", PICTURES)
    write(place / "fast", WORSE)
    before = {path: path.read_bytes() for folder in ("ref", "fast") for path in (place / folder).iterdir()}
    for _ in range(2):
        score.main(["fast", "reference=ref", "metrics=psnr"])
    assert {path: path.read_bytes() for folder in ("ref", "fast") for path in (place / folder).iterdir()} == before
    write(place / "fast", fabricate.noisy(PICTURES, 5))
    score.main(["fast", "reference=ref", "metrics=psnr"])
    assert float(results(place / "scored")["fast"]["psnr"]) > TRUE + 5
    assert len(list((place / "scored/rows/fast/samples").iterdir())) == 12


def test_names_in_natural_order():
    assert sorted(["img_10", "img_9", "a", "10", "9"], key=pairing.natural) == ["9", "10", "a", "img_9", "img_10"]
