"""The miniature world, its judge, its training loop and what is shipped."""

import copy
import json

import numpy as np
import pytest
import torch
from helpers import recipe, settings
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn
from training import parts
from training.fit import Muon, fit

from spectrum_bench.miniature import world
from spectrum_bench.miniature.judge import Seen, check, load_judge
from spectrum_bench.miniature.world import Scene, Thing
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.models import load_pipeline
from spectrum_bench.sampling.prompts import read_prompts

RED_RING, BLUE_STAR = Thing("small", "red", "ring"), Thing("large", "blue", "star")


def test_captions_and_scenes_are_one_to_one():
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = world.draw_scene(rng)
        assert world.parse(str(scene)) == scene
    assert str(Scene((RED_RING, BLUE_STAR), "left of", "navy")) == (
        "a small red ring left of a large blue star on a navy background"
    )
    for other in ("", "a ring", "a small red ring", "a small red ring on a navy background and more", "🦊" * 9):
        assert world.parse(other) is None


def test_the_prompt_files_keep_their_promises():
    shapes = read_prompts(ROOT / "prompts/shapes.txt")
    assert len(shapes) == len(set(shapes)) == 64
    assert all(world.parse(c) and world.held_out(c) for c in shapes)
    assert not any(world.held_out(c) for c in read_prompts(ROOT / "prompts/shapes_dev.txt"))
    moving = read_prompts(ROOT / "prompts/moving.txt")
    assert len(set(moving)) == 64 and all(world.parse(c).motion and world.held_out(c) for c in moving)
    for caption in read_prompts(ROOT / "prompts/moving_dev.txt"):
        assert world.parse(caption).motion and not world.held_out(caption)
    drawn = world.draw_scenes(np.random.default_rng(0), 500, held=False)  # what every training stage draws
    assert not {str(s) for s in drawn} & set(shapes)


@pytest.mark.parametrize("kind", ["shapes", "moving"])
def test_the_later_lists_repeat_nothing(kind):
    """No caption of the test list is in another list, and no model was trained on one."""
    files = [ROOT / f"prompts/{kind}{end}.txt" for end in ("", "_dev", "_test", "_dev32")]
    first, dev, test, dev32 = map(read_prompts, files)
    assert (len(test), len(dev32)) == (64, 32)
    assert len({*first, *dev, *test, *dev32}) == len(first) + len(dev) + len(test) + len(dev32)
    assert all(world.held_out(caption) for caption in test) and not any(map(world.held_out, dev32))
    assert {bool(world.parse(caption).motion) for caption in [*test, *dev32]} == {kind == "moving"}


@pytest.mark.parametrize("relation", world.RELATIONS)
def test_things_lie_as_the_caption_says_and_apart(relation):
    rng, scene = np.random.default_rng(0), Scene((RED_RING, BLUE_STAR), relation, "gray")
    for _ in range(200):
        (x0, y0, r0, *_), (x1, y1, r1, *_) = world.place(scene, rng)
        dx, dy = world.RELATIONS[relation]
        assert (x0 - x1) * dx + (y0 - y1) * dy >= r0 + r1
        assert all(r <= c <= world.SIDE - r for c, r in ((x0, r0), (y0, r0), (x1, r1), (y1, r1)))


def test_pictures_depend_on_the_seed_alone():
    scenes = world.draw_scenes(np.random.default_rng(0), 4, held=True)
    one, places, cover = world.render(scenes, np.random.default_rng(1))
    two, _, _ = world.render(scenes, np.random.default_rng(1))
    other, _, _ = world.render(scenes, np.random.default_rng(2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.shape == (4, 3, 64, 64) and one.min() >= 0 and one.max() <= 1
    for b, scene in enumerate(scenes):
        for k in range(2):
            assert bool(cover[b, k].any()) == (k < len(scene.things))
        x, y = places[b, 0, :2]
        colour = torch.tensor(world.COLOURS[scene.things[0].colour])
        inside = one[b, :, cover[b, 0] > 0.99]
        assert (inside.mean(1) - colour).abs().max() < 0.35, (scene, x, y)


def test_the_check_by_hand():
    def checked(*given):
        return {k: v for k, v in check(*given).items() if not np.isnan(v)}

    scene = Scene((RED_RING, BLUE_STAR), "left of", "navy")
    ring, star = (RED_RING, 10.0, 30.0), (BLUE_STAR, 50.0, 33.0)
    all_right = {"things": 1, "sizes": 1, "relation": 1, "background": 1, "caption": 1}
    assert checked(scene, Seen((star, ring), "navy")) == all_right
    assert checked(scene, Seen((ring, star), "teal")) == all_right | {"background": 0, "caption": 0}
    swapped = Seen(((RED_RING, 50.0, 30.0), (BLUE_STAR, 10.0, 33.0)), "navy")
    assert checked(scene, swapped) == all_right | {"relation": 0, "caption": 0}
    level = Seen(((RED_RING, 30.0, 10.0), (BLUE_STAR, 32.0, 50.0)), "navy")
    assert checked(scene, level)["relation"] == 0
    large = Seen(((Thing("large", "red", "ring"), 10.0, 30.0), star), "navy")
    assert checked(scene, large) == all_right | {"sizes": 0, "caption": 0}
    for wrong in (
        (ring,),
        (ring, star, (BLUE_STAR, 50.0, 5.0)),
        ((Thing("small", "red", "star"), 10.0, 30.0), star),
        (),
    ):
        found = checked(scene, Seen(wrong, "navy"))
        assert (found["things"], found["relation"], found["caption"], found["background"]) == (0, 0, 0, 1)
    alone = check(Scene((RED_RING,), None, "navy"), Seen((ring,), "navy"))
    assert np.isnan(alone["relation"]) and alone["caption"] == 1


def test_motion_is_that_of_the_first_thing_from_first_frame_to_last():
    scene = Scene((RED_RING, BLUE_STAR), "left of", "navy", "up")
    star = (BLUE_STAR, 50.0, 33.0)

    def clip(*rows):
        return [Seen(((RED_RING, 10.0, y), star), "navy") for y in rows]

    right = check(scene, *clip(40.0, 33.0, 24.0))
    assert right["motion"] == right["caption"] == 1
    for rows in ((24.0, 33.0, 40.0), (33.0, 33.0, 33.0), (36.0, 33.0, 30.0)):
        wrong = check(scene, *clip(*rows))
        assert (wrong["motion"], wrong["things"], wrong["caption"]) == (0, 1, 0)
    lost = [*clip(40.0, 33.0), Seen((star,), "navy")]
    assert check(scene, *lost)["motion"] == 0
    assert np.isnan(check(Scene((RED_RING,), None, "navy"), Seen(((RED_RING, 9.0, 9.0),), "navy"))["motion"])


def test_clips_move_as_they_say_and_nothing_else_does():
    rng = np.random.default_rng(0)
    scenes = world.draw_scenes(rng, 20, held=False, moving=True)
    assert all(world.parse(str(s)) == s and world.from_numbers(world.to_numbers(s)) == s for s in scenes)
    clips, places, cover = world.render_clips(scenes, rng, 9)
    assert clips.shape == (20, 9, 3, 64, 64) and cover.shape == (20, 9, 2, 64, 64)
    rows, columns = torch.arange(64) + 0.5, torch.arange(64) + 0.5
    for b, scene in enumerate(scenes):
        centres = []
        for f in (0, 8):
            mask = cover[b, f, 0]
            centres.append(torch.stack([(mask.sum(0) * columns).sum(), (mask.sum(1) * rows).sum()]) / mask.sum())
        moved = centres[1] - centres[0]
        way = torch.tensor(world.MOTIONS[scene.motion], dtype=torch.float)
        assert (moved @ way) >= world.TRAVEL[0] - 1 and (moved - (moved @ way) * way).abs().max() < 0.5
        assert torch.equal(cover[b, 0, 1], cover[b, 8, 1])
        still = (cover[b].sum((0, 1)) == 0) & (torch.hypot(columns - 32, rows[:, None] - 32) > 44)  # a corner's ground
        assert still.any() and (clips[b, 0] - clips[b, 8])[:, still].abs().max() < 0.1
    pictures = world.draw_scenes(rng, 20, held=False)
    assert all(s.motion is None and world.from_numbers(world.to_numbers(s)) == s for s in pictures)


def test_words_are_labelled_with_the_thing_they_are_about():
    from training.text import Reader

    words, whole = Reader.labels(Scene((RED_RING, BLUE_STAR), "left of", "navy", "up"), 20, first=1)
    ring, star = [0, 0, 5, 1, 3], [1, 4, 3, 2, 0]
    # <s> a small red ring moving up left of | a large blue star | on a navy background </s>
    assert words.tolist() == [[-100] * 5] + [ring] * 8 + [star] * 4 + [[-100] * 5] * 7
    assert whole.tolist() == ring + star + [2]
    words, whole = Reader.labels(Scene((RED_RING,), None, "gray"), 6, first=0)
    assert words.tolist() == [[0, 0, 5, 0, 0]] * 4 + [[-100] * 5] * 2
    assert whole.tolist() == [0, 0, 5, 0, 0] + [-100] * 5 + [0]


def test_the_judge_reads_held_out_pictures():
    judge, rng = load_judge(ROOT / "assets/tiny/flux/judge"), np.random.default_rng(123)
    scenes = world.draw_scenes(rng, 100, held=True)
    images, _, _ = world.render(scenes, rng)
    right = [check(s, seen)["caption"] for s, seen in zip(scenes, judge.read(images), strict=True)]
    assert np.mean(right) >= 0.95
    shuffled = [check(s, seen)["caption"] for s, seen in zip(scenes[1:] + scenes[:1], judge.read(images), strict=True)]
    assert np.mean(shuffled) <= 0.05


def test_tokenizers_know_every_word_and_survive_any_text():
    clip, t5 = parts.clip_tokenizer(parts.WORDS, 16), parts.t5_tokenizer(parts.WORDS, 16)
    for scene in world.draw_scenes(np.random.default_rng(0), 300, held=False):
        caption = str(scene)
        assert len(clip(caption).input_ids) == len(caption.split()) + 2 <= 16
        assert len(t5(caption).input_ids) == len(caption.split()) + 1 and t5.unk_token_id not in t5(caption).input_ids
    for text in ("", "🦊 ünïcödé <script>", "x" * 5000):
        assert len(clip(text, truncation=True, max_length=16).input_ids) <= 16


def test_every_tokenizer_has_one_token_a_word_and_is_made_alike_every_time():
    words = parts.WORDS + parts.MOVING_WORDS
    for make, extra in ((parts.clip_tokenizer, 2), (parts.t5_tokenizer, 1), (parts.llama_tokenizer, 1)):
        tokenizer = make(words, 20)
        assert tokenizer.get_vocab() == make(words, 20).get_vocab()
        for scene in world.draw_scenes(np.random.default_rng(0), 100, held=False, moving=True):
            caption = str(scene)
            ids = tokenizer(caption, padding="max_length").input_ids
            assert sum(i != tokenizer.pad_token_id for i in ids[1:]) + 1 == len(caption.split()) + extra - (extra == 2)
            assert ids[-1] == tokenizer.pad_token_id  # on the right
            assert tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True).split() == caption.split()


@pytest.mark.slow
def test_training_goes_on_exactly_where_it_stopped(tmp_path):
    """Ten steps at once and five, a restart, five more end in the same weights, bit for bit."""

    def train(folder, steps_now):
        torch.manual_seed(0)
        model = nn.ModuleDict({"kernel": nn.Conv1d(8, 8, 3), "block": nn.Linear(8, 8), "head": nn.Linear(8, 1)})

        def loss(step):
            if step >= steps_now:
                raise KeyboardInterrupt
            x = torch.from_numpy(np.random.default_rng(step).standard_normal((16, 8), dtype=np.float32))
            y = model["head"](model["block"](model["kernel"](x.T[None]).mT.mean(1) + x))
            return ((y - x.sum(1, keepdim=True)) ** 2).mean(), {}

        def muon(name, p):
            return "head" not in name and p.ndim > 1

        folder.mkdir(exist_ok=True)
        fit("toy", model, loss, steps=10, lr=1e-2, work=folder, muon=muon, save_every=5)
        return model

    whole = train(tmp_path / "a", 99)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", 5)
    resumed = train(tmp_path / "b", 99)
    for (name, p), q in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


def test_muon_treats_a_kernel_as_the_matrix_that_it_is():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().reshape(6, 36).clone())
    ours, theirs = Muon([kernel], lr=0.1), torch.optim.Muon([matrix], lr=0.1)
    for _ in range(3):
        kernel.grad = torch.randn_like(kernel).to(memory_format=torch.channels_last)
        matrix.grad = kernel.grad.reshape(6, 36)
        ours.step(), theirs.step()
    assert torch.equal(kernel.detach().reshape(6, 36), matrix.detach())


def test_a_decoder_trained_on_alone_leaves_latents_as_they_are(tmp_path, random_pipes):
    from training.students import STUDENTS
    from training.train import train_decoder

    cfg = OmegaConf.create(recipe("wan") | {"shared": str(tmp_path)})
    cfg.stages.decoder = {"steps": 2, "batch": 1, "lr": 1e-3}
    pipe = copy.deepcopy(random_pipes("wan"))
    student = STUDENTS[cfg.pipeline](pipe, OmegaConf.to_container(cfg.call), cfg.stages.denoiser.width)
    clips = torch.rand(1, 9, 3, 64, 64)
    before, weights = student.latents(clips), copy.deepcopy(pipe.vae.state_dict())
    train_decoder(student, cfg, "cpu")
    assert torch.equal(student.latents(clips), before)
    moved = {k.split(".")[0] for k, v in pipe.vae.state_dict().items() if not torch.equal(v, weights[k])}
    assert moved == {"decoder", "post_quant_conv"}


def test_a_miniature_can_start_from_a_shipped_one(tmp_path):
    from training.students import STUDENTS
    from training.train import train_vae

    folder = ROOT / "assets/tiny/wan"
    pipe = parts.build(recipe("wan") | {"start": "assets/tiny/wan"})
    vae = copy.deepcopy(pipe.vae.state_dict())
    shipped = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    before = pipe.transformer.state_dict()
    assert before.keys() == shipped.keys() and all(torch.equal(v, shipped[k].float()) for k, v in before.items())
    cfg = OmegaConf.create(recipe("wan") | {"shared": str(tmp_path)})
    cfg.stages.vae.steps = 0
    train_vae(STUDENTS["WanPipeline"](pipe, {}, 128), cfg, "cpu")  # leaves alone what the denoiser has learnt to read
    assert pipe.vae.config.latents_std == json.loads((folder / "vae/config.json").read_text())["latents_std"]
    assert torch.equal(pipe.vae.state_dict()["quant_conv.bias"], vae["quant_conv.bias"])


def test_a_start_with_other_patches_takes_over_the_blocks():
    cfg = recipe("wan") | {"start": "assets/tiny/wan"}
    shipped = parts.build(cfg).transformer
    cfg["parts"]["transformer"]["patch_size"] = [1, 4, 4]
    coarse = parts.build(cfg).transformer
    other = {k for k, v in coarse.state_dict().items() if v.shape != shipped.state_dict()[k].shape}
    assert other == {"patch_embedding.weight", "proj_out.weight", "proj_out.bias"}
    assert all(torch.equal(v, coarse.state_dict()[k]) for k, v in shipped.state_dict().items() if k not in other)
    assert not coarse.proj_out.weight.any() and coarse.patch_embedding.weight.any()
    x, text = torch.randn(1, 16, 3, 8, 8), torch.randn(1, 20, 128)
    assert coarse(x, torch.tensor([500.0]), text).sample.shape == x.shape


def test_a_score_is_of_the_same_captions_whatever_the_seed_of_training():
    from training.train import caption_score

    class Pipe:
        def set_progress_bar_config(self, disable):
            self.asked = []

        def __call__(self, captions, **kwargs):
            self.asked += captions
            return [torch.zeros(len(captions), 3, 64, 64)]

    judge, asked = load_judge(ROOT / "assets/tiny/flux/judge"), []
    for seed in (1, 2):
        cfg = OmegaConf.create(recipe("flux") | {"seed": seed})
        cfg.stages.score.captions = 4
        pipe = Pipe()
        assert caption_score(pipe, judge, cfg)["captions"] == 4
        asked.append(pipe.asked)
    assert asked[0] == asked[1] and len(set(asked[0])) == 4 and all(world.held_out(c) for c in asked[0])


SHIPPED = sorted(p.parent for p in (ROOT / "assets/tiny").glob("*/model_index.json"))
REAL = {  # what the full-size model's own scheduler_config.json says
    "flux": {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096},
    "sd3": {"shift": 3.0},
    "sdxl": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1},
    "wan": {"flow_shift": 3.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "hunyuan": {"shift": 7.0},
}
PIPELINES = {"flux": "FluxPipeline", "sd3": "StableDiffusion3Pipeline", "sdxl": "StableDiffusionXLPipeline"}
PIPELINES |= {"wan": "WanPipeline", "hunyuan": "HunyuanVideoPipeline"}


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_what_is_shipped_is_small_safe_and_a_plain_pipeline(folder):
    files = [p for p in folder.rglob("*") if p.is_file()]
    loras = [p for p in files if (p.parent / "lora.safetensors").exists()]
    assert sum(p.stat().st_size for p in files if p not in loras) <= 8e6
    assert sum(p.stat().st_size for p in loras) <= 2e6
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".md"}
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == PIPELINES[folder.name]
    assert {entry[0] for entry in index.values() if isinstance(entry, list) and entry[0]} <= {
        "diffusers",
        "transformers",
    }
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert {k: scheduler[k] for k in REAL[folder.name]} == REAL[folder.name]


MADE = {f"tiny-{folder.name}": (folder, 20) for folder in SHIPPED}  # model -> folder of its score, steps
MADE["tiny-flux-student"] = (ROOT / "assets/tiny/flux/student", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_a_shipped_miniature_draws_what_captions_say(name):
    """A few held-out captions, so that a broken export shows; the score over 200 is in score.json."""
    model, (folder, steps) = settings(f"model={name}").model, MADE[name]
    pipe, judge = load_pipeline(model, "cpu"), load_judge(ROOT / model.judge)
    captions = read_prompts(ROOT / "prompts" / ("moving.txt" if model.fps else "shapes.txt"), 10)
    given = {"num_inference_steps": steps, "output_type": "pt", **model.arguments}
    out = pipe(captions, generator=[torch.Generator().manual_seed(i) for i in range(len(captions))], **given)[0].float()
    clips = out if out.ndim == 5 else out[:, None]
    rows = [check(world.parse(c), *judge.read(clip)) for c, clip in zip(captions, clips, strict=True)]
    reached = json.loads((folder / "score.json").read_text())
    for part in ("things", "background"):
        assert np.mean([r[part] for r in rows]) >= max(reached[part] - 0.35, reached[part] / 2)
    assert np.mean([r["background"] for r in rows]) >= 0.8
