"""Pixel metrics against independent implementations, and what happens when one cannot be computed."""

import dataclasses
import hashlib
import io
import json
import math
import re
from functools import partial
from pathlib import Path

import fabricate
import numpy as np
import pytest
import torch

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.miniature import judge as tiny_judge
from spectrum_bench.miniature import world
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.catalogue import WebEntry
from spectrum_bench.scoring import readiness, scorers
from spectrum_bench.scoring.metrics import METRICS, caption, perceptual, pixel
from spectrum_bench.scoring.metrics.contracts import Metric, ModelFacts, Unscorable

PICTURES = fabricate.pictures(fabricate.captions(4))
GREY = np.full((64, 64, 3), 100, np.uint8)
LEVELS = [2, 10, 40]


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (np.ones((4, 4)), "metric mine must return one finite number a pair, not array"),
        (None, "metric mine must return one finite number a pair, not None"),
        (float("nan"), "metric mine must return one finite number a pair, not nan"),
    ],
    ids=["array", "none", "nan"],
)
def test_a_metric_that_returns_no_number_is_named(returned, told):
    item = scorers.Item(Path("x.png"), "a ring", np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(TypeError, match=told):
        scorers.by_frame("mine", lambda samples, references: [returned] * len(samples), [item])


def test_a_bug_of_one_metric_hides_no_other_one(monkeypatch):
    broken = dataclasses.replace(METRICS["psnr"], name="mine", fn="pixel:nothing")
    monkeypatch.setitem(scorers.METRICS, "mine", broken)
    lines = list(readiness.readiness())
    assert len(lines) == len(scorers.METRICS) and "ready  psnr" in lines
    assert any(re.match(r"broken mine: AttributeError: .*nothing", line) for line in lines)


def test_with_weights_the_check_scores_drawn_pixels(monkeypatch):
    """By hand: a metric of two pictures, one of a picture and a prompt, one of files."""
    pixels = readiness.drawn(clip=False)
    assert pixels.shape == (256, 256, 3) and pixels[40, 3].tolist() == [3, 40, 255]
    assert readiness.drawn(clip=True)[2, 40, 15].tolist() == [3, 40, 255]
    moved = np.concatenate([pixels[:, -5:], pixels[:, :-5]], axis=1)
    psnr = 20 * math.log10(255 / math.sqrt(((pixels.astype(float) - moved) ** 2).mean()))
    made = {
        "psnr": dataclasses.replace(METRICS["psnr"], check=round(psnr, 3)),
        "ssim": dataclasses.replace(METRICS["ssim"], check=0.99),
        "clip": dataclasses.replace(METRICS["clip"], batched=False),
        "files": dataclasses.replace(METRICS["imagereward"], name="files", environment=None),
        "fid": METRICS["fid"],
    }

    def scorer(metric, model):
        return {
            "clip": lambda sample, prompt: {"clip": float(sample[0, 7, 0] + len(prompt))},
            "files": lambda items: [{"files": float(np.asarray(fabricate.Image.open(items[0][0]))[9, 0, 1])}],
            "psnr": pixel.psnr,
            "ssim": pixel.ssim,
        }.get(metric.name)

    monkeypatch.setattr(readiness, "METRICS", made)
    monkeypatch.setattr(Metric, "scorer", scorer)
    monkeypatch.setattr(Metric, "weights", lambda metric: ("a file",))
    monkeypatch.setattr(readiness.isolated, "is_made", lambda name: True)
    nothing = "of the drawn pixels; no known value to compare it with"
    wrong = f"{pixel.ssim(pixels, moved):.6g} of the drawn pixels, and it should be 0.99: are these its weights?"
    assert list(readiness.readiness()) == [
        f"ready  psnr: {psnr:.6g} of the drawn pixels, as it should be",
        f"broken ssim: ValueError: {wrong}",
        f"ready  clip: {7 + len(readiness.PROMPT)} {nothing}",
        f"ready  files: 9 {nothing}",
        "ready  fid",
    ]


def test_psnr_by_hand():
    assert pixel.psnr(GREY, GREY + np.uint8(10)) == pytest.approx(20 * math.log10(255 / 10))
    assert pixel.psnr(GREY, GREY) == 100
    one = GREY.copy()
    one[3, 4, 1] += 1
    assert pixel.psnr(GREY, one) == pytest.approx(10 * math.log10(255**2 * GREY.size))


@pytest.mark.parametrize("a, b", [(0, 255), (0, 250), (10, 240)])
def test_psnr_does_not_wrap(a, b):
    """In uint8, 0 - 250 is 6 and 6 * 6 is 36: black would look like white."""
    found = pixel.psnr(np.full((16, 16, 3), a, np.uint8), np.full((16, 16, 3), b, np.uint8))
    assert found == pytest.approx(20 * math.log10(255 / (b - a)))


@pytest.mark.parametrize("difference, square", [(10, 100), (16, 0), (17, 33), (200, 64)])
def test_the_diagnostic_wraps_as_the_formula_does(difference, square):
    """By hand: a square modulo 256, whichever picture is brighter."""
    dark, bright = np.full((16, 16, 3), 20, np.uint8), np.full((16, 16, 3), 20 + difference, np.uint8)
    expected = 100 if square == 0 else 10 * math.log10(255**2 / square)
    assert pixel.psnr_uint8_wrapped(bright, dark) == pytest.approx(expected)
    assert pixel.psnr_uint8_wrapped(dark, bright) == pytest.approx(expected)
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert pixel.psnr_uint8_wrapped(*noise) == pytest.approx(28, abs=0.3) and pixel.psnr(*noise) < 8


@pytest.mark.parametrize("sigma", LEVELS)
def test_psnr_and_ssim_agree_with_scikit_image(sigma):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    for picture, other in zip(PICTURES, fabricate.noisy(PICTURES, sigma), strict=True):
        assert pixel.psnr(other, picture) == pytest.approx(peak_signal_noise_ratio(picture, other, data_range=255))
        # Without sigma's own window scikit-image would use another one; with it, it crops the same 5 pixels.
        wanted = structural_similarity(
            picture, other, channel_axis=2, data_range=255, gaussian_weights=True, use_sample_covariance=False
        )
        assert pixel.ssim(other, picture) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("height", [11, 73, 74, 75, 138, 139, 200])  # a strip has 64 rows, and 5 more on either side
def test_ssim_in_strips_is_that_of_the_whole_picture(height):
    from skimage.metrics import structural_similarity

    picture = fabricate.pictures(fabricate.captions(1), 200)[0][:height]
    other = fabricate.noisy(picture, 20)
    wanted = structural_similarity(
        picture, other, channel_axis=2, data_range=255, gaussian_weights=True, use_sample_covariance=False
    )
    assert pixel.ssim(other, picture) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("sigma", LEVELS)
def test_ssim_agrees_with_torchmetrics(sigma):
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = PICTURES[0], fabricate.noisy(PICTURES[0], sigma)
    x, y = (torch.from_numpy(p.astype(np.float64)).permute(2, 0, 1)[None] for p in (a, b))
    _, whole = structural_similarity_index_measure(x, y, sigma=1.5, data_range=255.0, return_full_image=True)
    assert pixel.ssim(a, b) == pytest.approx(float(whole[..., 5:-5, 5:-5].mean()), abs=1e-9)


def test_ssim_takes_the_smallest_picture_that_it_can():
    small = fabricate.noisy(PICTURES[0], 10)[:11, :12]
    assert 0 < pixel.ssim(small, PICTURES[0][:11, :12]) < 1
    with pytest.raises(Unscorable, match="12x10, smaller than the metric's window"):
        pixel.ssim(small[:10], PICTURES[0][:10, :12])


@pytest.mark.parametrize("metric", [pixel.psnr, pixel.ssim])
def test_identity_symmetry_and_order(metric):
    a, b, c = PICTURES[0], fabricate.noisy(PICTURES[0], 5), fabricate.noisy(PICTURES[0], 30)
    perfect = METRICS[metric.__name__].perfect
    assert metric(a, a) == pytest.approx(perfect, abs=1e-9)
    assert metric(a, b) == pytest.approx(metric(b, a), abs=1e-12)
    assert perfect > metric(a, b) > metric(a, c)


@pytest.mark.parametrize("metric", [pixel.psnr, pixel.ssim])
@pytest.mark.parametrize(
    "other, words",
    [
        (GREY[:, :32], "64x64 and its reference 32x64: make both with the same model.width"),
        (GREY[..., 0], "not an 8-bit RGB picture"),
        (np.zeros((64, 64, 4), np.uint8), "not an 8-bit RGB picture"),
        (GREY / 255.0, "not an 8-bit RGB picture"),
    ],
)
def test_refused_pictures(metric, other, words):
    with pytest.raises(Unscorable, match=words):
        metric(GREY, other)


def test_lpips_without_weights_is_unavailable(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    with pytest.raises(MetricUnavailable, match=f"no backbone weights {path}; wget -P {path.parent} https://"):
        METRICS["lpips"].scorer(ModelFacts())
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not these weights")
    with pytest.raises(MetricUnavailable, match=f"{path} are damaged; rm {path}; wget"):
        METRICS["lpips"].scorer(ModelFacts())


@pytest.mark.slow
@pytest.mark.parametrize("metric,net", [("lpips", "alex"), ("lpips_vgg", "vgg")])
def test_lpips_is_wired_as_in_its_own_package(monkeypatch, tmp_path, metric, net):
    """With a random backbone, so the numbers mean nothing; ours must be those of lpips' own class."""
    import lpips
    import torchvision

    torch.manual_seed(0)
    build = {"alex": torchvision.models.AlexNet, "vgg": partial(torchvision.models.vgg16, weights=None)}[net]
    backbone = build(num_classes=1)
    state = io.BytesIO()
    torch.save({k: v for k, v in backbone.state_dict().items() if k.startswith("features")}, state)
    digest = hashlib.sha256(state.getvalue()).hexdigest()
    path = tmp_path / "hub" / "checkpoints" / f"{net}.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(state.getvalue())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = WebEntry(f"https://nowhere/{path.name}", "{torch}/hub/checkpoints", len(state.getvalue()), digest)
    monkeypatch.setitem(perceptual.WEIGHTS, metric, (entry,))
    score = METRICS[metric].scorer(ModelFacts())
    with monkeypatch.context() as patch:
        patch.setattr(torchvision.models, {"alex": "alexnet", "vgg": "vgg16"}[net], lambda pretrained: backbone)
        witness = lpips.LPIPS(net=net, verbose=False)
    a, b, c = PICTURES[:3]
    expected = [witness(lpips.im2tensor(x), lpips.im2tensor(y)).item() for x, y in ((a, b), (b, c), (c, a))]
    scores = score([a, b, c], [b, c, a])
    assert scores == pytest.approx(expected, rel=1e-6) and min(scores) > 1e-4
    assert score([a, b], [a, b]) == [0, 0] and score([b], [a]) == pytest.approx(scores[:1], rel=1e-5)
    monkeypatch.setitem(perceptual.AT_ONCE, "cpu", 1)  # a picture at a time
    assert score([a, b, c], [b, c, a]) == pytest.approx(scores, rel=1e-5)
    small = [picture[:31, :31] for picture in (a, b)]
    assert score([a, small[0], c], [b, small[1], a]) == pytest.approx(
        [scores[0], *score(*[[x] for x in small]), scores[2]]
    )
    with pytest.raises(Unscorable, match="30x30, smaller"):
        score([a, a[:30, :30]], [b, b[:30, :30]])


def test_pictures_go_through_a_network_in_runs_of_one_size():
    from spectrum_bench.scoring.metrics.batches import runs

    sizes = [8, 8, 8, 4, 4, 16, 8]
    pictures = [np.zeros((side, side, 3), np.uint8) for side in sizes]
    lengths = [run.stop - run.start for run in runs(pictures, pixels=2 * 8 * 8)]
    assert lengths == [2, 1, 2, 1, 1] and list(runs([], 1)) == []


# ---------------------------------------------------------------------------------------------------------------------
# Caption check


def test_a_judge_is_known_by_its_accuracy_through_the_models_own_vae(tmp_path):
    for name, share in (("judge", 0.9), ("model", 0.7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "judge.json").write_text(json.dumps({"through_the_vae": {"caption": share}}))
    model = ModelFacts(judge=str(tmp_path / "judge"), repo=str(tmp_path / "model"))
    assert caption.judge_facts(model)["through_the_vae"]["caption"] == 0.7
    (tmp_path / "model" / "judge.json").unlink()
    assert caption.judge_facts(model)["through_the_vae"]["caption"] == 0.9
    assert caption.judge_facts(ModelFacts(repo=str(tmp_path / "model"))) is None


def save_random_judge(folder):
    tiny_judge.save_judge(tiny_judge.Judge(8), folder, {"width": 8, "rendered": {"caption": 0.5}})
    return ModelFacts(judge=str(folder))


def test_caption_needs_a_judge(tmp_path):
    with pytest.raises(MetricUnavailable, match="names no judge"):
        METRICS["caption"].scorer(ModelFacts())
    with pytest.raises(MetricUnavailable, match="judge.json; python training/train_tiny.py"):
        METRICS["caption"].scorer(ModelFacts(judge=str(tmp_path)))


def test_what_a_metric_may_know_of_a_model():
    assert ModelFacts.of({}) == ModelFacts.of({"judge": None, "metrics": None, "init": "pretrained"}) == ModelFacts()
    settings = {"metrics": ["clip"], "judge": "a", "repo": "b", "fps": 16, "init": "random", "note": "c"}
    assert ModelFacts.of(settings) == ModelFacts(("clip",), "a", "b", 16, random=True)


def test_caption_passes_on_what_the_judge_sees(tmp_path, monkeypatch):
    scorer = METRICS["caption"].scorer(save_random_judge(tmp_path))
    red, blue = world.Thing("large", "red", "star"), world.Thing("small", "blue", "ring")
    given = []

    def read(self, images):
        given.append(images)
        return [tiny_judge.Seen(((red, 10.0, 30.0), (blue, 50.0, 31.0)), "navy")]

    monkeypatch.setattr(tiny_judge.Judge, "read", read)
    yes = scorer(PICTURES[0], "a large red star left of a small blue ring on a navy background")
    assert np.isnan(yes.pop("motion"))
    assert yes == {"caption": 1, "things": 1, "sizes": 1, "relation": 1, "background": 1}
    no = scorer(PICTURES[0], "a large red star right of a small blue ring on a teal background")
    assert np.isnan(no.pop("motion"))
    assert no == {"caption": 0, "things": 1, "sizes": 1, "relation": 0, "background": 0}
    assert given[0].shape == (1, 3, 64, 64) and given[0].dtype == torch.float32
    assert given[0][0, 2, 5, 7] == pytest.approx(PICTURES[0][5, 7, 2] / 255)


def test_caption_is_blank_outside_the_grammar_and_for_other_sizes(tmp_path):
    scorer = METRICS["caption"].scorer(save_random_judge(tmp_path))
    assert all(math.isnan(v) for v in scorer(PICTURES[0], "a dog in the snow").values())
    assert all(math.isnan(v) for v in scorer(PICTURES[0][:, :32], fabricate.captions(1)[0]).values())


def test_the_shipped_judge_reads_rendered_pictures():
    folder = ROOT / "assets/tiny/flux/judge"
    if not folder.is_dir():
        pytest.skip("no trained judge here: python training/train_tiny.py")
    scorer = METRICS["caption"].scorer(ModelFacts(judge="assets/tiny/flux/judge"))
    prompts = fabricate.captions(64)
    pictures = fabricate.pictures(prompts)
    right = np.mean([scorer(p, c)["caption"] for p, c in zip(pictures, prompts, strict=True)])
    wrong = np.mean([scorer(p, c)["caption"] for p, c in zip(pictures, prompts[1:] + prompts[:1], strict=True)])
    stated = json.loads((folder / "judge.json").read_text())["rendered"]["caption"]
    assert right > stated - 0.1 and wrong < 0.1
