"""Edits of the drawn world, how the editing miniature learns them, and what of it is shipped."""

import json

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from helpers import recipe, settings
from PIL import Image
from training import edits
from training.parts import WORDS
from training.students import KontextStudent

from spectrum_bench.errors import BadValue, UserError
from spectrum_bench.miniature import world
from spectrum_bench.miniature.judge import check, load_judge
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.identity import identity
from spectrum_bench.sampling.models import load_pipeline, pipeline_class
from spectrum_bench.sampling.prompts import read_prompt_file, require
from spectrum_bench.sampling.settings import ModelSettings

LIST = ROOT / "prompts/edits.jsonl"


@pytest.fixture(scope="module")
def drawn():
    """Thirty edits, six of each kind, and their pictures before and after."""
    made = edits.draw_edits(np.random.default_rng(3), 30, held=False)
    return made, *edits.render(made, 4)


def test_the_picture_after_an_edit_shows_its_caption(drawn):
    made, before, after = drawn
    judge = load_judge(ROOT / "assets/tiny/flux/judge")
    right = [
        check(e.after, *judge.read(b[None]))["caption"] * 2 + check(e.after, *judge.read(a[None]))["caption"]
        for e, b, a in zip(made, before, after, strict=True)
    ]
    assert right.count(1) >= 29 and max(right) == 1  # the judge reads 98.9 % right


def test_an_edit_changes_what_it_names_and_nothing_else(drawn):
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for edit, before, after in zip(*drawn, strict=True):
        moved = (before - after).abs().amax(0) > 1e-6
        if edit.before.background != edit.after.background:
            assert edit.before.things == edit.after.things and moved.float().mean() > 0.6
            continue
        [which] = [k for k in range(2) if _look(edit, 0, k) != _look(edit, 1, k)]
        near = torch.zeros(64, 64, dtype=torch.bool)
        for x, y, radius in (places[which, :3] for places in edit.places):
            near |= torch.hypot(columns - x, rows - y) < 1.5 * radius + 4  # with corners and shadow
        assert moved.any() and not (moved & ~near).any()


def _look(edit, state, k):
    """All that decides how a thing is drawn."""
    scene = (edit.before, edit.after)[state]
    return scene.things[k : k + 1], edit.places[state][k].tolist()


def test_an_instruction_has_known_words_and_names_one_change(drawn):
    for edit, *_ in zip(*drawn, strict=True):
        assert set(edit.instruction.split()) <= set(WORDS)
        if edit.instruction.startswith("on a "):
            assert edit.instruction == f"on a {edit.after.background} background"
        elif edit.before.relation == edit.after.relation:
            new, old = edit.instruction.split(" on ")
            assert new in map(str, edit.after.things) and old in map(str, edit.before.things)
            assert len(set(new.split()) - set(old.split())) == 1
        else:
            said = world.parse(f"{edit.instruction} on a {edit.after.background} background")
            assert said == edit.after or said.things == edit.after.things[::-1]
    kinds = [len(edit.instruction.split()) for edit in drawn[0]]
    assert len(set(kinds)) > 2


def test_training_sees_no_caption_that_is_held_out():
    for held in (False, True):
        made = edits.draw_edits(np.random.default_rng(5), 20, held)
        assert {world.held_out(str(edit.after)) for edit in made} == {held}
        assert held or not any(world.held_out(str(edit.before)) for edit in made)


def test_the_network_is_called_as_the_pipeline_calls_it(random_pipe):
    pipe, call, given = FluxKontextPipeline(**random_pipe.components), recipe("kontext")["call"], []
    pipe.set_progress_bar_config(disable=True)
    student = KontextStudent(pipe, call, 128).eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    hook = pipe.transformer.register_forward_hook(
        lambda m, args, kwargs, out: given.append((kwargs, out[0])), with_kwargs=True
    )
    pipe(image=picture, prompt="on a teal background", num_inference_steps=1, output_type="latent", **call)
    hook.remove()
    [(kwargs, out)] = given
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        before = student.pack(student.latents(2 * pixels[:, None] - 1))
        text = student.conditions(["on a teal background"]) | {"before": before}
        ours = student.predict(kwargs["hidden_states"][:, :64], kwargs["timestep"], text, kwargs["guidance"])
    torch.testing.assert_close(ours, out[:, :64], atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What is shipped


def test_the_list_is_found_and_its_captions_are_held_out():
    prompts = read_prompt_file(LIST)
    require(prompts, ("image",), "tiny-kontext")
    rows = [json.loads(line) for line in LIST.read_text().splitlines()]
    assert len(prompts.lines) == len(rows) == 20 and len({row["image"] for row in rows}) == 20
    for prompt, row in zip(prompts.lines, rows, strict=True):
        [picture] = prompt.inputs
        assert picture.value().size == (64, 64) and set(prompt.text.split()) <= set(WORDS)
        assert world.parse(prompt.target_caption) and world.held_out(prompt.target_caption)
        assert prompt.seed == row["seed"]


def test_the_shipped_lora_edits():
    """Of five edits in a few steps, the ground: the picture alone tells four of them, the instruction alone the fifth.
    The score over 100 edits is in score.json."""
    model = settings("model=tiny-kontext", config_name="edit_image").model
    pipe, judge = load_pipeline(model, "cpu"), load_judge(ROOT / model.judge)
    rows = [json.loads(line) for line in LIST.read_text().splitlines()][:5]
    given = [Image.open(LIST.parent / row["image"]).convert("RGB") for row in rows]
    noise = [torch.Generator().manual_seed(row["seed"]) for row in rows]
    call = {"num_inference_steps": 6, "output_type": "pt", **model.arguments}
    made = pipe(image=given, prompt=[row["prompt"] for row in rows], generator=noise, **call)[0]
    seen = [read.background for read in judge.read(made)]
    assert seen == [world.parse(row["target_caption"]).background for row in rows] and len(set(seen)) == 4


# ---------------------------------------------------------------------------------------------------------------------
# model.pipeline


def test_another_pipeline_of_the_same_parts(weights):
    model = ModelSettings("x", repo=str(weights), dtype="float32", pipeline="FluxKontextPipeline")
    assert type(load_pipeline(model, "cpu")) is FluxKontextPipeline
    plain, other = ("model=tiny-flux", "+model.weights=x"), "+model.pipeline=FluxKontextPipeline"
    assert "pipeline" not in identity(settings(*plain))["model"]
    assert identity(settings(*plain, other))["model"]["pipeline"] == "FluxKontextPipeline"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("NoPipeline", "model.pipeline=NoPipeline is no pipeline of diffusers: write e.g. FluxKontextPipeline"),
        ("FluxTransformer2DModel", "is no pipeline of diffusers"),
        ("StableDiffusion3Pipeline", "needs a text_encoder_3, which here does not have"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(name, told):
    index = {part: ["diffusers", "X"] for part in ("scheduler", "vae", "transformer", "text_encoder", "tokenizer")}
    index |= {f"{part}_2": ["transformers", "X"] for part in ("text_encoder", "tokenizer")}
    with pytest.raises(UserError, match=told):
        pipeline_class(ModelSettings("x", repo="here", pipeline=name), index)


def test_random_weights_have_the_pipeline_of_their_architecture():
    with pytest.raises(BadValue, match="model.pipeline is of files"):
        ModelSettings.from_config({"name": "x", "pipeline": "FluxKontextPipeline", "init": "random"})
