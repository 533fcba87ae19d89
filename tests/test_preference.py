"""PickScore, HPSv2.1 and DINO by the true packages on small random weights: the wiring counts, the numbers do not."""

import json

import numpy as np
import open_clip
import pytest
import torch
from fabricate import captions, noisy, pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.scoring.metrics import METRICS, dino, preference
from spectrum_bench.scoring.metrics.contracts import ModelFacts

PROMPTS = captions(3)
PICTURES = pictures(PROMPTS)
END = 49407
MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))


def floats(picture) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).permute(2, 0, 1)


def without_a_tensor(folder):
    path = folder / "model.safetensors"
    save_file(dict(list(load_file(path).items())[1:]), path, {"format": "pt"})


@pytest.fixture
def small_clip(tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = size | {"vocab_size": 49408, "bos_token_id": END - 1, "eos_token_id": END, "pad_token_id": END}
    vision = size | {"image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).eval()
    model.logit_scale.data.fill_(4.0)
    for weight in model.parameters():  # its own start is so small that every score is nearly the same
        if weight.ndim == 2:
            torch.nn.init.xavier_uniform_(weight)
    model.save_pretrained(tmp_path)
    return tmp_path, model


@torch.inference_mode()
def test_pickscore_is_the_logit_of_transformers_own_call(small_clip):
    """Which gets texts as its own tokenizer pads them, with ends and a mask."""
    folder, model = small_clip
    score = preference.load_pickscore(folder)
    for picture, prompt in zip(PICTURES, PROMPTS, strict=True):
        pixels = (floats(Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC)) - MEAN) / STD
        tokens = open_clip.tokenize([prompt])
        mask = (tokens != 0).long()
        mask[0, 0] = 1
        padded = torch.where(mask.bool(), tokens, END)
        logit = model(padded, pixels[None], attention_mask=mask).logits_per_image.item()
        assert score([picture], [prompt])[0]["pickscore"] == pytest.approx(logit, abs=1e-3)
    first, other = (score(PICTURES[:1], [prompt])[0]["pickscore"] for prompt in PROMPTS[:2])
    assert abs(first - other) > 1e-2


def test_pickscore_without_a_tensor_is_refused(small_clip):
    without_a_tensor(small_clip[0])
    with pytest.raises(MetricUnavailable, match="pickscore: .* does not fit its config.json"):
        preference.load_pickscore(small_clip[0])


SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@pytest.fixture
def small_open_clip(tmp_path):
    (tmp_path / "small-hps.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    model = open_clip.create_model("small-hps").eval()
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "small.pt")
    return tmp_path / "small.pt", model


@torch.inference_mode()
def test_hpsv2_sees_the_whole_picture_with_a_black_margin(small_open_clip):
    path, model = small_open_clip
    score = preference.load_hpsv2("small-hps", path)
    wide = np.concatenate([PICTURES[0], PICTURES[1]], axis=1)  # 64 x 128 becomes 16 x 32
    for picture, (top, height) in {0: (0, 32), 1: (8, 16)}.items():
        given = (PICTURES[0], wide)[picture]
        resized = interpolate(floats(given)[None], (height, 32), mode="bicubic", antialias=True)[0]
        canvas = torch.zeros(3, 32, 32)
        canvas[:, top : top + height] = resized
        seen = model.encode_image(((canvas - MEAN) / STD)[None])[0]
        said = model.encode_text(open_clip.tokenize(PROMPTS[:1]))[0]
        cosine = (seen @ said / seen.norm() / said.norm()).item()
        assert score([given], PROMPTS[:1])[0]["hpsv2"] == pytest.approx(100 * cosine, abs=1e-3)


class Code:
    def __reduce__(self):
        return exec, ("raise SystemExit(9)",)


def test_hpsv2_runs_no_code_of_its_file(small_open_clip):
    path = small_open_clip[0]
    torch.save({"state_dict": Code()}, path)
    with pytest.raises(MetricUnavailable, match="does not fit small-hps"):
        preference.load_hpsv2("small-hps", path)


@pytest.fixture
def small_dino(tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 224, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**size)).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.xavier_uniform_(weight)
    model.save_pretrained(tmp_path)
    return tmp_path, model


@torch.inference_mode()
def test_dino_is_the_cosine_of_class_tokens(small_dino, monkeypatch):
    folder, model = small_dino
    score = dino.load(folder)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def token(picture):
        resized = Image.fromarray(picture).resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))
        return model(((floats(resized) - mean) / std)[None]).last_hidden_state[0, 0]

    others = [PICTURES[1], PICTURES[0], noisy(PICTURES[2:], 20)[0]]
    wanted = [
        (a @ b / a.norm() / b.norm()).item()
        for a, b in ((token(x), token(y)) for x, y in zip(PICTURES, others, strict=True))
    ]
    assert score(list(PICTURES), others) == pytest.approx(wanted, abs=1e-5) and max(wanted) < 0.999
    assert score(list(PICTURES), list(PICTURES)) == pytest.approx([1] * 3, abs=1e-9)
    monkeypatch.setattr(dino, "AT_ONCE", 2)
    assert score(list(PICTURES), others) == pytest.approx(wanted, abs=1e-5)


def test_dino_without_a_tensor_is_refused(small_dino):
    without_a_tensor(small_dino[0])
    with pytest.raises(MetricUnavailable, match="dino: .* does not fit its config.json"):
        dino.load(small_dino[0])


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "dino"])
def test_without_weights_it_is_unavailable(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    files = " ".join(entry.file for entry in METRICS[name].weights())
    with pytest.raises(MetricUnavailable, match=f"{name}: no weights of .*; hf download .* {files}"):
        METRICS[name].scorer(ModelFacts())
