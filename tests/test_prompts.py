"""Prompt lists: text in several codes, tables as others publish them, and pictures beside prompts."""

import dataclasses
import json
import shutil

import diffusers
import fabricate
import numpy as np
import pytest
import torch
from helpers import composed, settings
from PIL import Image

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.commands import run
from spectrum_bench.errors import UserError
from spectrum_bench.forecasters import reuse
from spectrum_bench.sampling.jobs import make_jobs
from spectrum_bench.sampling.media import encode
from spectrum_bench.sampling.prompts import read_prompt_file, read_prompts
from spectrum_bench.sampling.records import read_records
from spectrum_bench.sampling.sampler import Sampler
from spectrum_bench.schedules import full
from spectrum_bench.scoring.experiments import pairs, read_experiment

TWO = ["a red ring", "a blue star, \u201csmall\u201d"]
LISTS = {  # the form in which each is published
    "DrawBench.csv": 'Prompts,Category\na red ring,Colors\n"a blue star, \u201csmall\u201d",Colors\n',
    "PartiPrompts.tsv": "Prompt\tCategory\tNote\na red ring\tA\t\na blue star, \u201csmall\u201d\tA\tx\n",
    "VBench_full_info.json": json.dumps([{"prompt_en": p, "dimension": ["color"], "auxiliary_info": {}} for p in TWO]),
    "evaluation_metadata.jsonl": "\n".join(
        json.dumps({"tag": "single_object", "include": [], "prompt": p}) for p in TWO
    ),
    "captions_val2014.json": json.dumps(
        {
            "info": {"year": 2014},
            "images": [],
            "annotations": [{"image_id": 1, "id": i, "caption": p} for i, p in enumerate(TWO)],
        }
    ),
    "texts.json": json.dumps(TWO),
    "plain.txt": "\n".join(TWO),
}


@pytest.mark.parametrize("name", LISTS)
def test_published_lists_are_read(name, tmp_path):
    (tmp_path / name).write_text(LISTS[name], encoding="utf-8")
    assert read_prompts(tmp_path / name) == TWO
    assert read_prompts(tmp_path / name, 1) == TWO[:1]


def test_the_column_can_be_named(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("id,what\n1,a red ring\n2,\n3,a blue star\n")
    assert [prompt.text for prompt in read_prompt_file(path, column="what").lines] == ["a red ring", "a blue star"]
    with pytest.raises(UserError, match="no column of prompts: name one of id, what with prompt_column="):
        read_prompts(path)
    with pytest.raises(UserError, match="row 1 has no who: it has id, what"):
        read_prompt_file(path, column="who")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("list.txt", "Prompts,Category\na red ring,Colors\n", "looks like a table: rename it to list.csv"),
        ("list.txt", "Prompt\tNote\na red ring\tx\n", "looks like a table: rename it to list.tsv"),
        ("list.txt", '{"prompt": "a red ring"}\n', "looks like a table: rename it to list.jsonl"),
        ("list.csv", "prompt,caption\na,b\n", "has 2 columns of prompts"),
        ("list.csv", 'prompt\n"a red ring\n', "is no CSV file"),
        ("list.json", "{}", "holds no list of prompts"),
        ("list.json", "[1]", "item 1 is no object"),
        ("list.jsonl", '{"prompt": "a"}\n{"prompt": 7}\n', "row 2 has no text as its 7 as prompt"),
        ("list.jsonl", '{"prompt": "a"\n', "line 1: no JSON"),
        ("list.jsonl", "", "holds no prompt"),
        ("list.txt", "a red\0ring\n", "holds a NUL in line 1"),
    ],
)
def test_other_tables_are_refused_with_the_fix(name, text, reason, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=reason):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("line", ["[close-up] a red ring", "a red ring, a blue star", "{warm} light"])
def test_an_ordinary_prompt_is_no_table(line, tmp_path):
    (tmp_path / "list.txt").write_text(line)
    assert read_prompts(tmp_path / "list.txt") == [line]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_codes_with_a_mark_are_read(encoding, tmp_path):
    (tmp_path / "list.txt").write_bytes("\n".join(TWO).encode(encoding))
    assert read_prompts(tmp_path / "list.txt") == TWO


def test_marks_in_the_middle_are_dropped(tmp_path):
    """Two files that were joined have two of them."""
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa red ring\n\xef\xbb\xbfa blue star\n")
    assert read_prompts(tmp_path / "list.txt") == ["a red ring", "a blue star"]


def test_windows_code_page_is_named(tmp_path):
    (tmp_path / "list.txt").write_bytes("\n".join(TWO).encode("cp1252"))
    with pytest.raises(UserError, match=r"is not UTF-8 \(line 2\): convert it, e.g. iconv -f cp1252 -t utf-8"):
        read_prompts(tmp_path / "list.txt")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures beside prompts


@pytest.fixture
def listed(tmp_path):
    """A list of two prompts with a picture each."""
    (tmp_path / "in").mkdir()
    for name, colour in {"red": (255, 0, 0), "blue": (0, 0, 255)}.items():
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"in/{name}.png")
    lines = [{"prompt": "a ring", "image": "red.png"}, {"prompt": "a ring", "image": "blue.png"}]
    (tmp_path / "in/list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "in/list.jsonl"


def test_a_picture_enters_the_identity_by_its_bytes(listed):
    prompts = read_prompt_file(listed)
    ids = [job.id for job in make_jobs(prompts.lines, 0, {})]
    assert len(set(ids)) == 2  # the same text with two pictures
    shutil.move(listed.parent / "red.png", listed.parent / "moved.png")
    listed.write_text(listed.read_text().replace("red.png", "moved.png"))
    moved = read_prompt_file(listed)
    assert [job.id for job in make_jobs(moved.lines, 0, {})] == ids
    Image.new("RGB", (64, 64), (254, 0, 0)).save(listed.parent / "moved.png")
    changed = read_prompt_file(listed)
    assert changed.sha256 != moved.sha256
    assert [
        a.id == b.id for a, b in zip(make_jobs(changed.lines, 0, {}), make_jobs(moved.lines, 0, {}), strict=True)
    ] == [
        False,
        True,
    ]


def test_ids_with_inputs_are_frozen(tmp_path):
    (tmp_path / "ring.ppm").write_bytes(b"P6 1 1 255\n\xff\0\0")
    lines = [{"image": "ring.ppm"}, {"image": "ring.ppm", "mask_image": "ring.ppm"}, {}]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"prompt": "a ring"} | line) for line in lines))
    ids = [job.id for job in make_jobs(read_prompt_file(tmp_path / "list.jsonl").lines, 0, {})]
    assert ids == ["25096f065536f744", "8ff949e953f1532b", "654eed964f8f6f61"]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_pipeline_gets_the_text_of_a_line(batch, random_pipe, tmp_path):
    """The line's negative prompt stands before that of all lines."""
    text = json.dumps({"prompt": "a ring", "negative_prompt": "blur é"})
    (tmp_path / "list.jsonl").write_text(text, encoding="utf-8")
    (job,) = make_jobs(read_prompt_file(tmp_path / "list.jsonl").lines, 0, {})
    common = {"height": 32, "width": 32, "max_sequence_length": 16, "true_cfg_scale": 4.0}
    sampler = Sampler(random_pipe, Algorithm("x", full, reuse, None), 2, common | {"negative_prompt": "a dog"}, batch)
    expected = random_pipe(
        "a ring", negative_prompt="blur é", generator=torch.Generator().manual_seed(0),
        num_inference_steps=2, output_type="np", **common,
    ).images[0]  # fmt: skip
    made = sampler.sample(job)[0]
    assert np.abs(made - 255 * expected).max() < (0.51 if batch == 1 else 1.01)
    other = dataclasses.replace(job, inputs=())
    assert np.abs(sampler.sample(other)[0] - 255 * expected).max() > 5


def test_a_record_of_before_names_its_inputs_pictures(tmp_path):
    fabricate.experiment(tmp_path / "x", ["a ring"], fabricate.pictures(["a ring"]))
    file = tmp_path / "x/records.jsonl"
    file.write_text(file.read_text().replace('"inputs": {}', '"pictures": {"image": "ab"}'))
    assert read_records(tmp_path / "x")[0].inputs == {"image": "ab"}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("image", None, "row 1: there is no image .*gone.png"),
        ("image", b"GIF89a", "row 1: image .*gone.png is no picture"),
        ("negative_prompt", 3, "row 1: negative_prompt is no text"),
        ("negative_prompt", "x" * 2**16, "row 1: negative_prompt has more than 64 KiB"),
        ("image", 3, "row 1: image is no path of a file"),
    ],
)
def test_a_wrong_input_is_told_at_once(name, data, reason, tmp_path):
    given = "gone.png" if data is None or isinstance(data, bytes) else data
    (tmp_path / "list.jsonl").write_text(json.dumps({"prompt": "a ring", name: given}))
    if isinstance(data, bytes):
        (tmp_path / "gone.png").write_bytes(data)
    with pytest.raises(UserError, match=reason):
        read_prompt_file(tmp_path / "list.jsonl")


def test_a_target_caption_goes_to_the_record_and_decides_no_pixel(tmp_path):
    lines = [{"prompt": "make it red"}, {"prompt": "make it red", "target_caption": "a red\nring "}]
    ids = []
    for given in (lines, lines[:1] * 2):
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, given)))
        jobs = make_jobs(read_prompt_file(tmp_path / "list.jsonl").lines, 0, {"algo": "x"})
        ids.append([job.id for job in jobs])
        assert {job.target_caption for job in jobs} == ({None, "a red ring"} if given is lines else {None})
    assert ids[0] == ids[1] and len(set(ids[0])) == 2
    (tmp_path / "list.csv").write_text("prompt,target_caption\nmake it red,a red ring\n")
    assert read_prompt_file(tmp_path / "list.csv").lines[0].target_caption is None  # as of inputs
    prompts = ["make it red"]
    fabricate.experiment(tmp_path / "x", prompts, fabricate.pictures(prompts), target_caption="a red ring")
    fabricate.experiment(tmp_path / "y", prompts, fabricate.pictures(prompts))
    captions = [read_records(tmp_path / name)[0].caption for name in "xy"]
    assert captions == ["a red ring", "make it red"]


@pytest.mark.parametrize("wrong", [3, "", " \n", ["a ring"], "x" * 2**17])
def test_a_wrong_target_caption_is_told_at_once(wrong, tmp_path):
    (tmp_path / "list.jsonl").write_text(json.dumps({"prompt": "a ring", "target_caption": wrong}))
    with pytest.raises(UserError, match="row 1: target_caption is no text of at most 64 KiB"):
        read_prompt_file(tmp_path / "list.jsonl")


def test_a_line_s_seed_is_the_sample_s(tmp_path):
    file = tmp_path / "list.jsonl"

    def jobs(*lines, seed=42, samples=1):
        file.write_text("\n".join(json.dumps({"prompt": "a ring"} | line) for line in lines))
        return make_jobs(read_prompt_file(file).lines, seed, {}, samples)

    given = jobs({"seed": 7}, {})
    assert [job.seed for job in given] == [7, 42]
    assert given[0].id == jobs({}, seed=7)[0].id and given[1].id == jobs({})[0].id
    twice = jobs({"seed": 43}, {}, samples=2)  # the second line's second sample has the first one's seed
    assert [job.seed for job in twice] == [43, 42, 44, 43] and len({job.id for job in twice}) == 4
    for wrong in (-1, 1.5, "7", True, 2**63, 2**64, 2**65):
        with pytest.raises(UserError, match="row 1: seed must be a whole number"):
            jobs({"seed": wrong})


def test_a_clip_is_handed_on_by_its_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    (tmp_path / "clip.mp4").write_bytes(encode(frames, 8)[".mp4"])
    (tmp_path / "list.jsonl").write_text('{"prompt": "a ring", "video": "clip.mp4", "mask": "clip.mp4"}')
    (prompt,) = read_prompt_file(tmp_path / "list.jsonl").lines
    assert [each.name for each in prompt.inputs] == ["video", "mask"]
    assert all(np.array_equal(np.stack(each.value()), frames) for each in prompt.inputs)
    (tmp_path / "clip.mp4").write_bytes(b"no clip")
    with pytest.raises(UserError, match="row 1: video .*clip.mp4 is no clip"):
        read_prompt_file(tmp_path / "list.jsonl")


def test_a_model_that_needs_a_picture_says_so_before_it_is_looked_for(listed):
    words = ["model=wan2-2-i2v", "total_prompt_num=1"]
    with pytest.raises(UserError, match=r"model=wan2-2-i2v needs image beside each prompt, and prompt 1 has none"):
        run.prepare(composed(*words, config_name="image_to_video"))
    with pytest.raises(UserError, match=r"python download.py"):  # the list is good; weights are not here
        run.prepare(composed(*words, f"prompt_file={listed}", config_name="image_to_video"))


@pytest.mark.slow
def test_an_editing_pipeline_gets_its_picture(listed, random_pipe, tmp_path):
    """FLUX Kontext has FLUX's parts. Two pictures give two samples, and a reference must have the same."""
    editor = diffusers.FluxKontextPipeline(**random_pipe.components)
    editor.save_pretrained(tmp_path / "weights")
    arguments = (
        "{height: 64, width: 64, guidance_scale: 3.5, max_sequence_length: 16, max_area: 4096, _auto_resize: false}"
    )
    words = [f"model.repo={tmp_path}/weights", f"+model.arguments={arguments}", f"prompt_file={listed}", "device=cpu"]
    words += [f"output_base_path={tmp_path}/out", "num_inference_steps=8", "warmup_samples=0"]
    for algo in ("nocache", "spectrum"):
        run.main(composed(*words, f"algo={algo}", f"exp_name={algo}"))
    records = read_records(tmp_path / "out/nocache")
    samples = [np.asarray(Image.open(tmp_path / "out/nocache" / record.sample)) for record in records]
    assert records[0].prompt == records[1].prompt and records[0].inputs != records[1].inputs
    assert not np.array_equal(*samples)
    own, reference = (read_experiment(tmp_path / "out" / name) for name in ("spectrum", "nocache"))
    assert len(pairs(own, reference)) == 2 and own.records[0].nfe < 8
    listed.write_text("\n".join(reversed(listed.read_text().splitlines())))
    run.main(composed(*words, "algo=fora", "exp_name=other"))
    with pytest.raises(UserError, match="other inputs beside it"):
        pairs(read_experiment(tmp_path / "out/other"), reference)


@pytest.mark.slow
def test_a_pipeline_without_pictures_says_so(listed, weights, tmp_path):
    words = [
        f"model.repo={weights}",
        f"prompt_file={listed}",
        f"output_base_path={tmp_path}/out",
        "num_inference_steps=8",
    ]
    with pytest.raises(UserError, match="FluxPipeline takes no image: leave it out of the prompt file"):
        run.main(composed(*words, "device=cpu", "exp_name=x"))
    assert settings(*words).prompt_column is None
