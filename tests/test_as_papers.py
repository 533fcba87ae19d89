"""metrics=as:<paper>: what released evaluators compute, by independent code, and the command that takes it."""

import fabricate
import numpy as np
import pytest
import torch

from spectrum_bench.commands import evaluate
from spectrum_bench.scoring.metrics import METRICS, chosen, papers, perceptual, pixel
from spectrum_bench.scoring.metrics.contracts import ModelFacts

PROMPTS = fabricate.captions(2)
PICTURES = fabricate.pictures(PROMPTS)


@pytest.mark.parametrize("paper", papers.PAPERS)
@pytest.mark.parametrize("fps", [None, 16])
def test_a_paper_has_metrics_that_can_score_what_is_made(paper, fps):
    names = chosen(ModelFacts(fps=fps), f"as:{paper}")
    assert names and all(METRICS[name].only != ("pictures" if fps else "clips") for name in names)
    assert any(word in papers.PAPERS[paper].source for word in ("arXiv", "@"))


def test_freqca_has_its_evaluators_metrics():
    """Tammytcl/FreqCa@e0a4bf3, flux/evaluate.py: uint8 differences, grey SSIM, AlexNet, ViT-g/14, 512 tokens."""
    wanted = {"psnr_uint8_wrapped", "ssim_grey", "lpips", "clip_g", "imagereward_512"}
    assert set(chosen(ModelFacts(), "as:freqca")) == wanted
    assert set(chosen(ModelFacts(fps=8), "as:freqca")) == wanted - {"imagereward_512"}


@pytest.mark.parametrize("sigma", [2, 40])
def test_grey_ssim_agrees_with_scikit_image(sigma):
    from skimage.metrics import structural_similarity

    other = fabricate.noisy(PICTURES[0], sigma)

    def grey(picture):  # OpenCV's fixed-point arithmetic, 15 bits
        r, g, b = (picture[..., i].astype(np.int64) for i in range(3))
        return ((9798 * r + 19235 * g + 3735 * b + (1 << 14)) >> 15).astype(np.uint8)

    wanted = structural_similarity(grey(other), grey(PICTURES[0]), data_range=255)
    assert pixel.ssim_grey(other, PICTURES[0]) == pytest.approx(wanted, abs=1e-4)
    assert pixel.ssim_grey(other, other) == pytest.approx(1)
    assert abs(pixel.ssim(other, PICTURES[0]) - wanted) > 1e-3


def test_the_map_of_lpips_is_the_packages_own(tmp_path):
    import lpips
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    other = PICTURES[:1].copy()
    other[:, :20, :20] = 255 - other[:, :20, :20]  # in a corner, where enlarging and averaging differ
    score = perceptual.load(tmp_path / "alexnet.pth", "alex", spatial=True)
    theirs = lpips.LPIPS(net="alex", spatial=True, pnet_rand=True, verbose=False).eval()
    state = torch.load(tmp_path / "alexnet.pth", weights_only=True)
    for name, module in theirs.net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            number = name.split(".")[-1]
            module.load_state_dict({key: state[f"features.{number}.{key}"] for key in ("weight", "bias")})
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (other, PICTURES[:1]))
    with torch.inference_mode():
        wanted = theirs(a, b)
    assert wanted.shape == (1, 1, 64, 64)
    assert score(list(other), list(PICTURES[:1])) == pytest.approx([float(wanted.mean())], rel=5e-6)
    plain = perceptual.load(tmp_path / "alexnet.pth", "alex")(list(other), list(PICTURES[:1]))
    assert plain != pytest.approx([float(wanted.mean())], rel=2e-5)


def test_the_command_says_what_it_takes_and_what_differs(tmp_path, capsys):
    reference = fabricate.experiment(tmp_path / "nocache", PROMPTS, PICTURES)
    row = fabricate.experiment(tmp_path / "fora", PROMPTS, fabricate.noisy(PICTURES, 5), "fora", 14)
    evaluate.main([str(row), f"reference={reference}", "metrics=as:freqca"])
    said = capsys.readouterr().out
    assert "metrics=as:freqca: psnr_uint8_wrapped, ssim_grey, lpips, clip_g, imagereward_512 (arXiv:2510." in said
    assert "not the same: its PSNR wraps at 256" in said and "ssim_grey 0." in said
