"""GenEval: what its prompts ask for, its rules on drawn-up detections, its two networks with weights of the test's."""

import math
from types import SimpleNamespace

import fabricate
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.scoring.metrics import METRICS, clip, detector, geneval
from spectrum_bench.scoring.metrics.contracts import ModelFacts
from spectrum_bench.scoring.metrics.geneval_rules import Asked, Found, parse, relations, shows


@pytest.mark.parametrize("prompt, task, asked", [
    ("a photo of an orange", "single_object", [Asked("orange")]),
    ("a photo of an orange hot dog", "colors", [Asked("hot dog", colour="orange")]),
    ("a photo of a tv remote and a dog", "two_object", [Asked("tv remote"), Asked("dog")]),
    ("a photo of four buses", "counting", [Asked("bus", 4)]),
    ("a photo of two toothbrushs", "counting", [Asked("toothbrush", 2)]),
    ("a photo of a tie above a sink", "position", [Asked("sink"), Asked("tie", at="above")]),
    ("a photo of a white dog and a blue potted plant", "color_attr",
     [Asked("dog", colour="white"), Asked("potted plant", colour="blue")]),
])  # fmt: skip
def test_a_prompt_tells_what_it_asks_for(prompt, task, asked):
    assert parse(prompt) == (task, tuple(asked))


@pytest.mark.parametrize("prompt", [
    "a photo of a unicorn", "a photo of five dogs", "A photo of a dog", "a photo of a dog, 8k", "a photo of a red",
    "a photo of a red dog above a cat", "a photo of a red dog and a cat",
])  # fmt: skip
def test_other_prompts_are_none_of_its(prompt):
    assert parse(prompt) is None


def things(*boxes, score=0.95):
    return [Found(score - 0.001 * i, box) for i, box in enumerate(boxes)]


LEFT, RIGHT, LOW = (0, 0, 20, 20), (60, 0, 80, 20), (0, 60, 20, 80)


def nobody_asks(found, thing):
    raise AssertionError


@pytest.mark.parametrize("count, right", [(1, False), (2, False), (3, True), (4, False)])
def test_a_count_is_exact(count, right):
    found = {"dog": things(*[LEFT] * count), "cat": things(LEFT)}
    assert shows(*parse("a photo of three dogs"), found, nobody_asks) is right


def test_only_sure_detections_count_and_surer_ones_in_a_count():
    weak, strong = things(LEFT, score=0.31), things(LEFT, score=0.29)
    assert shows(*parse("a photo of a dog"), {"dog": weak}, nobody_asks)
    assert not shows(*parse("a photo of a dog"), {"dog": strong}, nobody_asks)
    some = {"dog": [*things(LEFT, RIGHT), *things(LOW, score=0.85)]}
    assert shows(*parse("a photo of two dogs"), some, nobody_asks)
    assert not shows(*parse("a photo of three dogs"), some, nobody_asks)
    assert not shows(*parse("a photo of a dog and a cat"), {"dog": weak}, nobody_asks)


def test_the_surest_thing_has_the_colour():
    found = {"dog": [Found(0.5, LEFT), Found(0.9, RIGHT)], "cat": [Found(0.9, LOW)]}
    hues = {LEFT: "red", RIGHT: "blue", LOW: "white"}

    def colours(some, thing):
        assert some == found[thing][-1:]
        return [hues[each.box] for each in some]

    def right(prompt):
        return shows(*parse(prompt), found, colours)

    assert right("a photo of a blue dog") and not right("a photo of a red dog")
    assert right("a photo of a blue dog and a white cat") and not right("a photo of a white dog and a blue cat")


def test_places_by_hand():
    """Centres at (10, 10), (70, 10), (10, 70); sizes of 20, of which a tenth of both is 4."""
    left, right, low = (Found(1, box) for box in (LEFT, RIGHT, LOW))
    assert relations(left, right) == {"left of"} and relations(right, left) == {"right of"}
    assert relations(left, low) == {"above"} and relations(low, left) == {"below"}
    assert relations(right, low) == {"right of", "above"}  # (60 - 4) / 84.9 each
    assert relations(left, left) == set()
    assert relations(Found(1, (0, 0, 100, 10)), Found(1, (19, 0, 119, 10))) == set()  # 19 apart, of 20 that are needed
    assert relations(Found(1, (0, 0, 100, 10)), Found(1, (41, 0, 141, 10))) == {"left of"}  # 21 / 41
    found = {"dog": [left], "cat": [right]}
    assert shows(*parse("a photo of a dog left of a cat"), found, nobody_asks)
    assert not shows(*parse("a photo of a cat left of a dog"), found, nobody_asks)


PROMPTS = [
    "a photo of a dog", "a photo of a cat", "a photo of a dog and a cat", "a photo of two dogs", "a photo of a red dog",
    "a photo of a dog above a cat", "a photo of a red dog and a blue cat", "a ring",
]  # fmt: skip


def test_the_score_is_the_mean_over_tasks(tmp_path):
    """Every picture shows two dogs, both red, and a cat below them: by hand, all but the blue cat."""
    items = []
    for i, prompt in enumerate(PROMPTS):
        path = tmp_path / f"{i}.png"
        fabricate.Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
        items.append((path, prompt))
    looks = []

    def detect(picture):
        looks.append(int(picture[0, 0, 0]))
        return {"dog": things(LEFT, RIGHT), "cat": things(LOW)}

    score = geneval.scorer(detect, lambda picture, some, thing: ["red"] * len(some))
    rows = score(items)
    assert [row["geneval_single_object"] for row in rows[:2]] == [1, 1] and math.isnan(rows[0]["geneval_colors"])
    wanted = {"two_object": 1, "counting": 1, "colors": 1, "position": 1, "color_attr": 0}
    for task, row in zip(wanted, rows[2:7], strict=True):
        assert row[f"geneval_{task}"] == wanted[task]
    assert all(map(math.isnan, rows[7].values()))
    assert np.nanmean([row["geneval"] for row in rows]) == pytest.approx(5 / 6)
    assert score(items) and looks == list(range(7))  # each is looked at once
    with pytest.raises(MetricUnavailable, match="no picture of GenEval's prompts for counting; .*prompts=geneval"):
        score([item for item in items if "two" not in item[1]])


def save_detector(folder, classes=80):
    """A small Mask2Former, random, with its processor."""
    torch.manual_seed(0)
    swin = SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2, image_size=64,
                      out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    size = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    size |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 16}
    config = Mask2FormerConfig(backbone_config=swin, num_queries=4, num_labels=classes, **size)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def test_the_detector_says_what_its_network_says(tmp_path, monkeypatch):
    """A car in the right half, a dog in the upper left, and what is not sure, as logits of a network."""
    folder = save_detector(tmp_path)
    detector.load(folder)(fabricate.pictures(fabricate.captions(1))[0])  # the true one runs
    classes = torch.full((1, 4, 81), -20.0)
    for query, (label, logit) in enumerate(((2, 5.0), (16, 5.0), (0, 5.0), (1, -20.0))):
        classes[0, query, label] = logit
    classes[0, 2, 80] = 6.5  # a person, at 18 %
    classes[0, 3, 80] = 5.0  # nothing
    masks = torch.full((1, 4, 16, 16), -9.0)
    masks[0, 0, :, 8:] = 9
    masks[0, 1, :8, :8] = 9
    masks[0, 2] = 9
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    monkeypatch.setattr(Mask2FormerForUniversalSegmentation, "forward", lambda *_, **__: outputs)
    found = detector.load(folder)(np.zeros((64, 64, 3), np.uint8))
    assert found.keys() == {"car", "dog"}
    (car,), (dog,) = found["car"], found["dog"]
    assert car.box == (32, 0, 64, 64) and dog.box == (0, 0, 32, 32)
    assert car.mask.sum() == 32 * 64 and car.score == pytest.approx(1, abs=0.01)


def test_another_detector_is_refused(tmp_path):
    folder = save_detector(tmp_path, classes=91)
    with pytest.raises(MetricUnavailable, match="geneval: .* knows 91 classes; take COCO's instances"):
        detector.load(folder)
    path = folder / "model.safetensors"
    save_file(dict(list(load_file(path).items())[1:]), path, {"format": "pt"})
    with pytest.raises(MetricUnavailable, match="geneval: .* does not fit its config.json"):
        detector.load(folder)


def test_without_weights_it_is_unavailable(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MetricUnavailable, match="geneval: no weights of .*; hf download .*"):
        METRICS["geneval"].scorer(ModelFacts())
    with pytest.raises(MetricUnavailable, match="geneval: these are clips"):
        METRICS["geneval"].scorer(ModelFacts(fps=16))


HUES = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "white": (1, 1, 1), "black": (-1, -1, -1)}


class Painter:
    """A picture is the direction of its mean from grey; a text that of its colour, and nothing for what has none."""

    def encode_image(self, pictures, normalize):
        return torch.nn.functional.normalize(pictures.mean((2, 3)) - 0x99 / 255, dim=-1)

    def encode_text(self, texts, normalize):
        return torch.nn.functional.normalize(texts, dim=-1)


def test_a_colour_is_that_of_the_thing_alone(monkeypatch, tmp_path):
    """A thing is cut out of its box before grey: by hand, what lies around it in the box does not count."""
    asked: list[str] = []

    def tokenize(texts):
        asked.extend(texts)
        words = [text.split(" a ")[1].split()[0].split("-")[0] for text in texts]
        return torch.tensor([HUES.get(word, (0, 0, 0)) for word in words], dtype=torch.float32)

    def transform(picture):
        return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).permute(2, 0, 1)[:, :16, :16]

    monkeypatch.setattr(clip, "network", lambda metric, architecture, path: (Painter(), transform, tokenize))
    colours = detector.load_colours("any", tmp_path)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (0, 0, 255), (0, 255, 0)
    picture[20:24, 20:24] = 255, 0, 0
    small = np.zeros((64, 64), bool)
    small[20:24, 20:24] = True
    found = [Found(1, (16, 16, 32, 32), small), Found(1, (16, 16, 32, 32)), Found(1, (40, 0, 56, 16), ~small)]
    assert colours(picture, found, "dog") == ["red", "blue", "green"]
    assert len(asked) == 30 and {"a photo of a red dog", "a photo of a red-colored dog", "a photo of a red object"} < {
        *asked
    }
    assert colours(picture, found[:1], "dog") == ["red"] and len(asked) == 30  # the texts are read once
