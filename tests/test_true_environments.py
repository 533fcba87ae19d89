"""Metrics in environments of their own, for real: the true packages, run by our scripts, on random weights.

The files have the true ones' names, places and formats; sizes are smaller where a package reads them from the files.
A test is skipped where its environment is not made: the first use of the metric makes it.
"""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import fabricate
import numpy as np
import pytest

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling import media
from spectrum_bench.scoring.metrics import METRICS, fid, isolated
from spectrum_bench.scoring.metrics.contracts import ModelFacts
from spectrum_bench.scoring.metrics.vbench import DIMENSIONS

pytestmark = pytest.mark.slow

PROMPTS = fabricate.captions(3)

# ImageReward.pt, one without a tensor (the others are one number each, repeated), and what the package itself scores.
IMAGEREWARD = """
import json, sys
import ImageReward, torch
from ImageReward.ImageReward import ImageReward as Model

folder, items = sys.argv[1], json.loads(sys.argv[2])
torch.manual_seed(0)
model = Model(f"{folder}/med_config.json")
for module in (model.mlp, model.blip.text_encoder):  # its own start is so small that every score is the same
    for weight in module.parameters():
        if weight.ndim == 2:
            torch.nn.init.xavier_uniform_(weight)
state = model.state_dict()
torch.save(state, f"{folder}/ImageReward.pt")
torch.save({k: torch.zeros(1).expand(v.shape) for k, v in list(state.items())[1:]}, f"{folder}/lacking.pt")
model = ImageReward.load(f"{folder}/ImageReward.pt", device="cpu", med_config=f"{folder}/med_config.json")
print(json.dumps([model.score(prompt, path) for path, prompt in items]))
"""

# All that VBench's seven dimensions read. CLIP is archived by TorchScript, as OpenAI's files are.
VBENCH_WEIGHTS = """
import sys
from pathlib import Path
import torch
import vbench
from clip.model import CLIP
from easydict import EasyDict
from omegaconf import OmegaConf
from pyiqa.archs.musiq_arch import MUSIQ
from vbench.third_party.amt.utils.build_utils import build_from_cfg
from vbench.third_party.RAFT.core.raft import RAFT

home, checkpoints = map(Path, sys.argv[1:])
torch.manual_seed(0)

def save(state, *places):
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, place)

def archive(place, width, patch):
    model = CLIP(width, 224, 2, 64, patch, 77, 100, 64, 1, 2).eval()
    for name, number in {"input_resolution": 224, "context_length": 77, "vocab_size": 100}.items():
        vars(model).pop(name, None)
        model.register_buffer(name, torch.tensor(number))
    place.parent.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)
    torch.jit.trace(model, example, check_trace=False).save(place)

archive(home / "clip_model/ViT-B-32.pt", 512, 32)
archive(home / "clip_model/ViT-L-14.pt", 768, 14)
aesthetic = torch.nn.Linear(768, 1)
torch.nn.init.constant_(aesthetic.bias, 5)
save(aesthetic.state_dict(), home / "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth")
hub = home / "dino_model/facebookresearch_dino_main"
dino = torch.hub.load(str(hub), "dino_vitb16", source="local", pretrained=False).state_dict()
save(dino, home / "dino_model/dino_vitbase16_pretrain.pth", checkpoints / "dino_vitbase16_pretrain.pth")
config = OmegaConf.load(Path(vbench.__file__).parent / "third_party/amt/cfgs/AMT-S.yaml")
save({"state_dict": build_from_cfg(config.network).state_dict()}, home / "amt_model/amt-s.pth")
raft = RAFT(EasyDict(small=False, mixed_precision=False)).state_dict()
save({f"module.{name}": tensor for name, tensor in raft.items()}, home / "raft_model/models/raft-things.pth")
musiq = MUSIQ(pretrained=False)
torch.nn.init.constant_(musiq.head.bias, 50)
save(musiq.state_dict(), home / "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth")
"""

# For facebookresearch/dino@7c446df: its entry point, too, is told things by VBench, and reads its weights in this way.
HUB = """
import torch
from timm.models.vision_transformer import VisionTransformer

def dino_vitb16(pretrained=True, **_):
    model = VisionTransformer(patch_size=16, embed_dim=64, depth=2, num_heads=1, num_classes=0)
    if pretrained:
        url = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
        model.load_state_dict(torch.hub.load_state_dict_from_url(url, map_location="cpu"))
    return model
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder without anything, whose gigabytes do not outlive the test."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "VBENCH_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / ".cache/huggingface/hub"))
    yield tmp_path
    shutil.rmtree(tmp_path / ".cache", ignore_errors=True)


def run(name: str, script: str, *arguments) -> str:
    command = [isolated.environment(name), "-c", script, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def samples(folder: Path, what: dict[str, tuple[np.ndarray, int]], fps: int | None = None) -> list[tuple[Path, str]]:
    """Name -> pixels and number of the prompt, as files where a run leaves them, with their prompts."""
    (folder / "samples").mkdir(parents=True)
    items = []
    for name, (pixels, prompt) in what.items():
        path = folder / "samples" / f"{name}{'.mp4' if fps else '.png'}"
        path.write_bytes(media.encode(pixels, fps)[path.suffix])
        items.append((path, PROMPTS[prompt]))
    return items


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def expect_kept(scorer, items, found, monkeypatch) -> None:
    """Asked again, it has the scores without starting its script."""
    with monkeypatch.context() as nothing:
        nothing.setattr(subprocess, "run", None)
        assert scorer(items) == found


@pytest.mark.skipif(not isolated.is_made("imagereward"), reason="the environment of imagereward is not made")
def test_imagereward(home, caplog, monkeypatch):
    folder, hub = home / ".cache/ImageReward", home / ".cache/huggingface/hub/models--bert-base-uncased"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(re.findall(r"\w+", " ".join(PROMPTS))))]
    files = {
        folder / "med_config.json": json.dumps(
            {"vocab_size": len(words) + 2, "num_hidden_layers": 2, "add_cross_attention": True}
        ),
        folder / "vocab.txt": "\n".join(words),
        hub / "refs/main": "a0",
        hub / "snapshots/a0/vocab.txt": "\n".join(words),
        hub / "snapshots/a0/tokenizer_config.json": '{"do_lower_case": true}',
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    one, other = fabricate.pictures(PROMPTS[:2])
    items = samples(home / "run", {"a": (one, 0), "b": (other, 0), "c": (one, 1), "damaged": (other, 1)})
    witness = json.loads(run("imagereward", IMAGEREWARD, folder, json.dumps(items[:3], default=str)).splitlines()[-1])
    assert min(np.diff(sorted(witness))) > 1e-2  # picture and prompt both matter

    cut_off(items[3][0])
    scorer = METRICS["imagereward"].scorer(ModelFacts())
    found = scorer(items)
    assert [each["imagereward"] for each in found[:3]] == pytest.approx(witness, abs=1e-4)
    assert math.isnan(found[3]["imagereward"])
    (line,) = [line for line in caplog.messages if line.startswith("imagereward: ")]
    assert str(items[3][0]) in line and "truncated" in line
    expect_kept(scorer, items[:3], found[:3], monkeypatch)

    long = " ".join([*PROMPTS[0].split(), *(["ring"] * 40)])
    both = [(items[0][0], PROMPTS[0]), (items[0][0], long)]
    (short, tail), wide = scorer(both), METRICS["imagereward_512"].scorer(ModelFacts())(both)
    assert wide[0]["imagereward_512"] == pytest.approx(short["imagereward"], abs=1e-4)
    assert wide[1]["imagereward_512"] != pytest.approx(tail["imagereward"], abs=1e-3)  # the package cuts it off

    (folder / "lacking.pt").rename(folder / "ImageReward.pt")
    with pytest.raises(MetricUnavailable, match="ImageReward.pt does not fit: 1 tensors have no partner"):
        METRICS["imagereward"].scorer(ModelFacts())(items[3:])


@pytest.mark.skipif(not isolated.is_made("vbench"), reason="the environment of vbench is not made")
def test_vbench(home, capfd, caplog, monkeypatch):
    cache, checkpoints = home / ".cache/vbench", home / ".cache/torch/hub/checkpoints"
    code = cache / "dino_model/facebookresearch_dino_main/hubconf.py"
    code.parent.mkdir(parents=True)
    code.write_text(HUB)
    for name in ("vision_transformer.py", "utils.py"):  # of the true code; the one above imports neither
        code.with_name(name).touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    run("vbench", VBENCH_WEIGHTS, cache, checkpoints)

    # of a smaller side the coarsest of RAFT's correlations would be one pixel, whose place divides by zero
    pictures = fabricate.pictures(PROMPTS, 128)
    clips = np.stack([np.roll(pictures, i * i, axis=2) for i in range(5)], axis=1)
    items = samples(home / "run", {name: (clip, 0) for name, clip in zip("abc", clips, strict=True)}, fps=8)
    cut_off(items[1][0])
    scorer = METRICS["vbench"].scorer(ModelFacts(fps=8))
    found = scorer(items)
    assert not capfd.readouterr().out
    (line,) = [line for line in caplog.messages if line.startswith("vbench: ")]
    assert str(items[1][0]) in line and DIMENSIONS[0] in line
    assert all(map(math.isnan, found[1].values()))
    one, other = found[0], found[2]
    assert one.keys() == other.keys() == {"vbench", *DIMENSIONS}
    for name in DIMENSIONS:
        assert 0 <= one[name] <= 1 and 0 <= other[name] <= 1
        assert one[name] != other[name] or name == "dynamic_degree"  # yes or no
    for scores, clip in ((one, clips[0]), (other, clips[2])):
        still = 1 - np.abs(np.diff(clip.astype(float), axis=0)).mean() / 255
        # these two judges say 5 of 10 and 50 of 100, and a bit
        assert scores["aesthetic_quality"] == pytest.approx(0.5, abs=0.1)
        assert scores["imaging_quality"] == pytest.approx(0.5, abs=0.1)
        assert scores["temporal_flickering"] == pytest.approx(still, abs=1e-6)
        by_hand = [
            (scores["subject_consistency"] - 0.1462) / (1 - 0.1462),
            (scores["background_consistency"] - 0.2615) / (1 - 0.2615),
            (scores["temporal_flickering"] - 0.6293) / (1 - 0.6293),
            (scores["motion_smoothness"] - 0.706) / (0.9975 - 0.706),
            scores["dynamic_degree"] / 2,
            scores["aesthetic_quality"],
            scores["imaging_quality"],
        ]
        assert scores["vbench"] == pytest.approx(sum(by_hand) / 6.5)
    expect_kept(scorer, [items[0], items[2]], [one, other], monkeypatch)


# A small network in the shape of clean-fid's file, and what clean-fid itself makes of a folder of pictures.
FID = """
import sys
import numpy as np
import torch
from cleanfid.features import build_feature_extractor
from cleanfid import fid, inception_torchscript

class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(3 * 13 * 13, 2048)

    def forward(self, x):
        return self.mix(torch.nn.functional.avg_pool2d(x, 23).flatten(1))

class Inception(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x):
        return self.layers(x)

torch.manual_seed(0)
folder, first, second = sys.argv[1:]
torch.jit.trace(Inception().eval(), torch.zeros(2, 3, 299, 299)).save(f"{folder}/inception-2015-12-05.pt")
network = inception_torchscript.InceptionV3W(folder, download=False)
how = {"num_workers": 0, "mode": "clean", "device": torch.device("cpu"), "verbose": False}
one, other = (fid.get_folder_features(f, network, **how) for f in (first, second))
moments = [part for x in (one, other) for part in (np.mean(x, 0), np.cov(x, rowvar=False))]
np.random.seed(0)
print(fid.frechet_distance(*moments), fid.kernel_distance(one, other, num_subsets=1, max_subset_size=len(one)))
"""


@pytest.mark.skipif(not isolated.is_made("fid"), reason="the environment of fid is not made")
def test_fid_and_kid(home, monkeypatch):
    weights = home / ".cache/cleanfid"
    weights.mkdir(parents=True)
    pictures = fabricate.pictures(fabricate.captions(12), 96)
    one = samples(home / "run", {str(i): (picture, 0) for i, picture in enumerate(pictures)})
    other = samples(home / "plain", {str(i): (p, 0) for i, p in enumerate(fabricate.noisy(pictures, 30))})
    printed = run("fid", FID, weights, home / "run/samples", home / "plain/samples")
    wanted, wanted_kid = map(float, printed.splitlines()[-1].split())
    monkeypatch.setattr(fid, "FEWEST", 12)
    assert METRICS["fid"].scorer(ModelFacts())(one, other) == pytest.approx(wanted, rel=1e-4)
    assert METRICS["kid"].scorer(ModelFacts())(one, other) == pytest.approx(wanted_kid, rel=1e-4)


# The file of MUSIQ's weights, and what pyiqa makes of pictures with them.
MUSIQ = """
import sys
import torch
import pyiqa

torch.manual_seed(0)
path, *pictures = sys.argv[1:]
metric = pyiqa.create_metric("musiq", pretrained=False)
torch.nn.init.normal_(metric.net.head.weight, std=5)
torch.save(metric.net.state_dict(), path)
metric = pyiqa.create_metric("musiq", pretrained_model_path=path)
print(*(float(metric(picture)) for picture in pictures))
"""


@pytest.mark.skipif(not isolated.is_made("musiq"), reason="the environment of musiq is not made")
def test_musiq(home):
    path = home / ".cache/torch/hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth"
    path.parent.mkdir(parents=True)
    one, other = fabricate.pictures(PROMPTS[:2], 96)
    items = samples(home / "run", {"a": (one, 0), "b": (other, 0), "damaged": (one, 1)})
    wanted = [float(word) for word in run("musiq", MUSIQ, path, *(p for p, _ in items[:2])).splitlines()[-1].split()]
    assert abs(wanted[0] - wanted[1]) > 1e-2
    cut_off(items[2][0])
    found = METRICS["musiq"].scorer(ModelFacts())(items)
    assert [each["musiq"] for each in found[:2]] == pytest.approx(wanted, abs=1e-3)
    assert math.isnan(found[2]["musiq"])


# The file of CLIP's weights as OpenAI archives them, small, and a plain copy; all of them are whole in half precision.
CLIPIQA = """
import sys
import torch
from pyiqa.archs.clip_model import CLIP

torch.manual_seed(0)
path, copy = sys.argv[1:]
model = CLIP(64, 64, (1, 1, 1, 1), 16, None, 77, 49408, 64, 1, 2).eval()
for name, parameter in model.named_parameters():
    if name.endswith("bn3.weight"):
        torch.nn.init.ones_(parameter)
    parameter.data = parameter.half().float()
torch.save(model.state_dict(), copy)
for name, number in {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}.items():
    vars(model).pop(name, None)
    model.register_buffer(name, torch.tensor(number))
torch.jit.trace(model, (torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long)), check_trace=False).save(path)
"""


def clipiqa_by_hand(weights: Path, picture: Path) -> float:
    """With open_clip's network, which agrees where no position is added: the share that a picture's nearness to the
    good of two words has, mean over pyiqa's five pairs."""
    import open_clip
    import torch
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=64)
    model = CLIP(64, vision, CLIPTextCfg(width=64, heads=1, layers=2), quick_gelu=True).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    torch.nn.init.zeros_(model.visual.attnpool.positional_embedding)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    pixels = torch.tensor(media.read(picture)).permute(2, 0, 1) / 255
    good = ["Good image", "Sharp image", "sharp edges", "High resolution image", "Noise-free image"]
    bad = ["bad image", "blurry image", "blurry edges", "low resolution image", "noisy image"]
    tokenizer = open_clip.get_tokenizer("RN50")
    with torch.no_grad():
        seen = model.encode_image(((pixels - mean) / std)[None], normalize=True)
        near, far = (seen @ model.encode_text(tokenizer(words), normalize=True).T for words in (good, bad))
        return float(torch.sigmoid(model.logit_scale.exp() * (near - far)).mean())


@pytest.mark.skipif(not isolated.is_made("clipiqa"), reason="the environment of clipiqa is not made")
def test_clipiqa(home):
    path = home / ".cache/torch/hub/clip/RN50.pt"
    path.parent.mkdir(parents=True)
    items = samples(home / "run", {str(i): (p, 0) for i, p in enumerate(fabricate.pictures(PROMPTS[:2], 64))})
    items += samples(home / "other", {"damaged": (fabricate.pictures(PROMPTS[:1], 64)[0], 1)})
    cut_off(items[2][0])
    run("clipiqa", CLIPIQA, path, home / "copy.pt")
    wanted = [clipiqa_by_hand(home / "copy.pt", picture) for picture, _ in items[:2]]
    assert abs(wanted[0] - wanted[1]) > 1e-4
    found = METRICS["clipiqa"].scorer(ModelFacts())(items)
    assert [each["clipiqa"] for each in found[:2]] == pytest.approx(wanted, abs=3e-6)
    assert math.isnan(found[2]["clipiqa"])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MetricUnavailable, match="does not fit .*; download it again"):
        METRICS["clipiqa"].scorer(ModelFacts())(items[2:])
