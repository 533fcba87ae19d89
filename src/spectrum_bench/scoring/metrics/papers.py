"""The metrics of published tables, so that a table can go on where theirs ends: metrics=as:freqca."""

from collections.abc import Iterator
from dataclasses import dataclass

from spectrum_bench.errors import BadValue

PREFIX = "as:"


@dataclass(frozen=True)
class Published:
    """What a paper's tables score by.

    Attributes:
        pictures, clips: our metrics that come nearest.
        source: where that is known from.
        differs: what is not theirs all the same.
    """

    pictures: tuple[str, ...]
    clips: tuple[str, ...]
    source: str
    differs: tuple[str, ...] = ()


SIMILARITY = ("psnr", "ssim", "lpips")
PAPERS = {
    "taylorseer": Published(
        ("imagereward", "clip"),
        ("vbench_standard",),
        "arXiv:2503.06923; Shenyi-Z/TaylorSeer@288776d, README.md and TaylorSeer-HunyuanVideo/eval; its issue 32",
        (
            "no evaluator of pictures is released; for its CLIP of 19.6 on FLUX its issue 32 got 17.2",
            "its VBench score is the total of 16 dimensions, ours the Quality Score of 7",
        ),
    ),
    "teacache": Published(
        ("psnr", "ssim", "lpips_spatial"),
        ("psnr", "ssim", "lpips_spatial", "vbench_standard"),
        "arXiv:2411.19108; ali-vilab/TeaCache@7c10efc, eval/teacache",
        ("its VBench score is the total of 16 dimensions, ours the Quality Score of 7",),
    ),
    "spectrum": Published(
        (*SIMILARITY, "imagereward", "clip"),
        (*SIMILARITY, "vbench_standard"),
        "arXiv:2603.01623, sections 4.1 and 4.2",
        ("no evaluator is released: the networks of LPIPS and CLIP, and SSIM's window, are our guess",),
    ),
    "freqca": Published(
        ("psnr_uint8_wrapped", "ssim_grey", "lpips", "clip_g", "imagereward_512"),
        ("psnr_uint8_wrapped", "ssim_grey", "lpips", "clip_g"),
        "arXiv:2510.08669; Tammytcl/FreqCa@e0a4bf3, flux/evaluate.py",
        (
            "its PSNR wraps at 256 (docs/psnr.md): score psnr, too",
            "identical pairs are infinite there, and so is a mean with one of them; here they count as 100 dB",
            "it shrinks pictures for ImageReward as tensors, we as its package does",
        ),
    ),
    "toca": Published(
        ("clip",),
        ("vbench_standard",),
        "arXiv:2410.05317; Shenyi-Z/ToCa@27078a2, README.md; its issue 5",
        (
            "its FID on 30,000 captions of COCO is to photographs, ours to the reference's samples",
            "its CLIP is about 17 on PixArt, where others have 27 (its issue 5): ours continues no such column",
            "its VBench score is the total of 16 dimensions, ours the Quality Score of 7",
        ),
    ),
}


def published(wanted: str) -> Published:
    """What `as:<paper>` stands for.

    Raises:
        BadValue: there is no such paper.
    """
    name = wanted.removeprefix(PREFIX)
    if name not in PAPERS:
        raise BadValue(f"metrics={wanted[:80]}: there is no table of {name[:80]}: choose of as:{', as:'.join(PAPERS)}")
    return PAPERS[name]


def describe(wanted: str, clips: bool) -> Iterator[str]:
    """Lines about the choice `as:<paper>`; none about any other."""
    if not wanted.startswith(PREFIX):
        return
    paper = published(wanted)
    yield f"metrics={wanted}: {', '.join(paper.clips if clips else paper.pictures)} ({paper.source})"
    for difference in paper.differs:
        yield f"  not the same: {difference}"
