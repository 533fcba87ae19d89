"""The CLIP score, by the true open_clip on small random weights: the numbers mean nothing, their wiring does."""

import json

import numpy as np
import pytest
import torch
from fabricate import captions, noisy, pictures
from PIL import Image
from safetensors.torch import save_file

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling import catalogue
from spectrum_bench.scoring.metrics import METRICS, clip
from spectrum_bench.scoring.metrics.contracts import ModelFacts

PROMPTS = captions(3)
PICTURES = pictures(PROMPTS)
SMALL = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def open_clip():
    """Imported where it is used: each process of pytest collects this file, and the import takes more than a second."""
    import open_clip

    return open_clip


@pytest.fixture(scope="module")
def small(open_clip, tmp_path_factory):
    """(architecture, its weights, the model)."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "small-quickgelu.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model("small-quickgelu").eval()
    save_file(model.state_dict(), folder / "small.safetensors")
    return "small-quickgelu", folder / "small.safetensors", model


@torch.inference_mode()
def test_it_is_a_hundred_times_the_cosine(small, open_clip):
    architecture, path, model = small
    score = clip.load("clip", architecture, path)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    for picture, prompt in zip(PICTURES, PROMPTS, strict=True):
        resized = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC))
        pixels = (torch.from_numpy(resized.astype(np.float32) / 255).permute(2, 0, 1) - mean) / std
        seen = model.encode_image(pixels[None])[0]
        said = model.encode_text(open_clip.tokenize([prompt]))[0]
        cosine = (seen @ said / seen.norm() / said.norm()).item()
        assert score([picture], [prompt])[0]["clip"] == pytest.approx(100 * cosine, abs=1e-3)


def test_prompts_pictures_and_frames_matter(small, monkeypatch):
    score = clip.load("clip", *small[:2])
    values = [[each["clip"] for each in score(PICTURES, [prompt] * 3)] for prompt in PROMPTS]
    assert len(set(sum(values, []))) == 9
    clips = score([PICTURES, PICTURES[0], PICTURES[1:]], PROMPTS[:1] * 3)
    frames = values[0]
    means = [np.mean(frames), frames[0], np.mean(frames[1:])]
    assert [each["clip"] for each in clips] == pytest.approx(means, abs=1e-4)
    monkeypatch.setattr(clip, "AT_ONCE", 2)
    assert [each["clip"] for each in score(PICTURES, PROMPTS[:1] * 3)] == pytest.approx(frames, abs=1e-4)
    assert abs(score(noisy(PICTURES[:1], 1), PROMPTS[:1])[0]["clip"] - frames[0]) < 1


def test_the_activation_is_openais(small, open_clip):
    """Plain ViT-L-14 with the same file would take GELU: other numbers, and no complaint."""
    score = clip.load("clip", *small[:2])
    assert open_clip.get_model_config("ViT-L-14-quickgelu")["quick_gelu"]
    assert not open_clip.get_model_config("ViT-L-14").get("quick_gelu")
    open_clip.factory._MODEL_CONFIGS["small"] = SMALL | {"quick_gelu": False}
    try:
        other = clip.load("clip", "small", small[1])
    finally:
        del open_clip.factory._MODEL_CONFIGS["small"]
    (ours,), (gelu,) = (scorer(PICTURES[:1], PROMPTS[:1]) for scorer in (score, other))
    assert abs(ours["clip"] - gelu["clip"]) > 1e-3


@pytest.mark.parametrize("name", ["clip", "clip_g"])
def test_without_weights_it_is_unavailable(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        MetricUnavailable, match=f"{name}: no weights of .*; hf download .* open_clip_model.safetensors"
    ):
        METRICS[name].scorer(ModelFacts())


def test_damaged_weights_are_not_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "try_to_load_from_cache", lambda *_, revision: str(tmp_path / revision))
    (entry,) = clip.WEIGHTS["clip"]
    (tmp_path / entry.revision).write_bytes(b"other weights")
    with pytest.raises(MetricUnavailable, match=f"clip: weights .* are damaged; .* --revision {entry.revision}"):
        METRICS["clip"].scorer(ModelFacts())


@pytest.mark.slow
def test_weights_of_another_model_are_refused(small):
    with pytest.raises(MetricUnavailable, match="does not fit ViT-B-32"):
        clip.load("clip", "ViT-B-32", small[1])
