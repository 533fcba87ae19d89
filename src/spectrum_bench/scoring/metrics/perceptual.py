"""LPIPS v0.1 (Zhang et al. 2018, arXiv:1801.03924): the distance of a sample from its reference in a network's
features.

The package `lpips` holds the linear heads. The backbone is torchvision's, and PyTorch's cache holds its weights.
"""

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.paths import with_tilde
from spectrum_bench.sampling.catalogue import WebEntry
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.sampling.remote import checksum
from spectrum_bench.scoring.metrics.contracts import ModelFacts, PairedBatchScorer, Unscorable
from spectrum_bench.scoring.metrics.pixel import check_pair

# PyTorch puts the first 8 digits of a checksum into the file's name; others have published the rest.
WEIGHTS = {
    "lpips": (
        WebEntry(
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            to="{torch}/hub/checkpoints",
            size=244408911,
            sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        ),
    ),
    "lpips_vgg": (
        WebEntry(
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
            to="{torch}/hub/checkpoints",
            size=553433881,
            sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
    ),
}
WEIGHTS["tlpips"] = WEIGHTS["lpips_spatial"] = WEIGHTS["lpips"]
SIDE = 31  # in smaller pictures AlexNet's second pooling has nothing left; VGG needs 16
AT_ONCE = {"cpu": 2**20, "cuda": 2**22}  # pixels in a batch; VGG's features of it take 1.2 and 5 GB


def make_lpips(model: ModelFacts) -> PairedBatchScorer:
    """LPIPS on AlexNet."""
    return load(backbone("lpips"), "alex")


def make_lpips_vgg(model: ModelFacts) -> PairedBatchScorer:
    """LPIPS on VGG-16."""
    return load(backbone("lpips_vgg"), "vgg")


def make_lpips_spatial(model: ModelFacts) -> PairedBatchScorer:
    """LPIPS on AlexNet as the mean of its map, as TeaCache's evaluator has it: each layer's map is first enlarged to
    the picture's size (ali-vilab/TeaCache@7c10efc, eval/teacache/common_metrics/calculate_lpips.py)."""
    return load(backbone("lpips_spatial"), "alex", spatial=True)


def make_tlpips(model: ModelFacts) -> PairedBatchScorer:
    """tLP of Chu et al. 2020 (arXiv:1811.09393): | LPIPS of neighbouring frames - the same of the reference |."""
    lpips = load(backbone("tlpips"), "alex")

    def score(samples: Sequence[Pixels], references: Sequence[Pixels]) -> list[float]:
        for clip in samples:
            if len(clip) < 2:
                raise Unscorable("has one frame, and nothing changes in it")
        return [
            float(np.abs(changes(lpips, a) - changes(lpips, b)).mean())
            for a, b in zip(samples, references, strict=True)
        ]

    return score


def changes(lpips: PairedBatchScorer, clip: Pixels) -> NDArray[np.float64]:
    """(F - 1,): LPIPS between each frame of a clip and the next one."""
    return np.array(lpips(list(clip[1:]), list(clip[:-1])))


def backbone(metric: str) -> Path:
    """The file with the weights of a metric's backbone. It is never downloaded here. Its checksum is compared, because
    scores of wrong weights look plausible.

    Raises:
        MetricUnavailable: the file is not on this machine, or damaged.
    """
    (entry,) = WEIGHTS[metric]
    shown = with_tilde(entry.path)
    fetch = f"wget -P {Path(shown).parent} {entry.source}"
    if not entry.path.is_file():
        raise MetricUnavailable(metric, f"no backbone weights {shown}", fetch)
    if checksum(entry.path) != entry.sha256:
        raise MetricUnavailable(metric, f"backbone weights {shown} are damaged", f"rm {shown}; {fetch}")
    return entry.path


def load(path: Path, net: str = "alex", spatial: bool = False) -> PairedBatchScorer:
    """The scorer whose backbone is the state dict at `path`.

    Args:
        net: the backbone's name in the package, "alex" or "vgg".
        spatial: the score is the mean of a map of the picture's size.
    """
    import torch

    from spectrum_bench.scoring.metrics.batches import device, runs, stacked, whole_float32

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision in a deprecated way
        import lpips

        model = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False, spatial=spatial).eval()
    slices = (getattr(model.net, f"slice{i}") for i in range(1, model.net.N_slices + 1))
    features = torch.nn.Sequential(OrderedDict(child for s in slices for child in s.named_children()))
    state = torch.load(path, map_location="cpu", weights_only=True)
    features.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
    model.to(device())
    at_once = AT_ONCE[device().type]

    def score(samples: Sequence[Pixels], references: Sequence[Pixels]) -> list[float]:
        for sample, reference in zip(samples, references, strict=True):
            check_pair(sample, reference, SIDE)
        scores: list[float] = []
        with whole_float32():
            for run in runs(samples, at_once):
                a, b = (stacked(pictures[run]) / 127.5 - 1 for pictures in (samples, references))
                scores += model(a, b).mean((1, 2, 3)).tolist()
        return scores

    return score
