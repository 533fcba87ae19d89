"""The metrics that an evaluation computes. To add one, write a module here with a function, and an entry below.

A metric whose packages conflict with ours is a script isolated/score_<name>.py and an entry below. A model's YAML lists
the metrics that are computed by default.
"""

from spectrum_bench.errors import BadValue
from spectrum_bench.sampling.catalogue import Entry
from spectrum_bench.scoring.metrics import papers
from spectrum_bench.scoring.metrics.contracts import Metric, ModelFacts
from spectrum_bench.scoring.metrics.geneval import DETAILS as GENEVAL
from spectrum_bench.scoring.metrics.vbench import DIMENSIONS

__all__ = ["DEFAULT", "METRICS", "Metric", "ModelFacts", "chosen", "weights"]

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "psnr", "paired", "PSNR dB", True, "pixel:make_psnr", 2, unit="dB", perfect=100.0, unrelated=25.0,
            packages=("numpy",),
        ),
        Metric(
            "ssim", "paired", "SSIM", True, "pixel:make_ssim", 3, perfect=1.0, unrelated=0.95,
            packages=("numpy", "scipy"),
        ),
        Metric(
            "ssim_grey", "paired", "SSIM (grey)", True, "pixel:make_ssim_grey", 3, perfect=1.0,
            packages=("numpy", "scipy"),
            about="SSIM (grey): of grey levels in a square window of 7x7, scikit-image's default, as several "
            "evaluators have it",
        ),
        Metric(
            "ms_ssim", "paired", "MS-SSIM", True, "pixel:make_ms_ssim", 3, perfect=1.0, unrelated=0.95,
            packages=("numpy", "scipy"),
        ),
        Metric(
            "flicker", "paired", "Flicker", False, "pixel:make_flicker", 2, perfect=0.0, whole=True, only="clips",
            packages=("numpy",),
            about="Flicker: how far the change from frame to frame differs from the reference's, in grey levels of 255",
        ),
        Metric(
            "lpips", "paired", "LPIPS", False, "perceptual:make_lpips", 3, perfect=0.0, unrelated=0.05,
            batched=True, packages=("torch", "lpips"),
        ),
        Metric(
            "lpips_vgg", "paired", "LPIPS (VGG)", False, "perceptual:make_lpips_vgg", 3, perfect=0.0, unrelated=0.05,
            batched=True, packages=("torch", "lpips"),
        ),
        Metric(
            "lpips_spatial", "paired", "LPIPS (map)", False, "perceptual:make_lpips_spatial", 3, perfect=0.0,
            batched=True, packages=("torch", "lpips"),
            about="LPIPS (map): AlexNet, the mean of a map of the picture's size, as TeaCache's evaluator has it",
        ),
        Metric(
            "tlpips", "paired", "tLPIPS", False, "perceptual:make_tlpips", 4, perfect=0.0, batched=True, whole=True,
            only="clips", packages=("torch", "lpips"),
            about="tLPIPS: how far LPIPS between neighbouring frames differs from the reference's (arXiv:1811.09393)",
        ),
        Metric(
            "dino", "paired", "DINO", True, "dino:make_dino", 4, perfect=1.0, batched=True,
            packages=("torch", "transformers", "torchvision"),
            about="DINO: the cosine of the class tokens of DINOv2's ViT-B/14 (arXiv:2304.07193); not that of "
            "DINO's own ViT-S/16, which papers on editing report",
        ),
        Metric(
            "imagereward", "files", "ImageReward", True, digits=3, environment="imagereward", only="pictures",
            packages=("image-reward",),
            about="ImageReward-v1.0 (arXiv:2304.05977) as its package scores: 35 tokens of the prompt",
        ),
        Metric(
            "imagereward_512", "files", "ImageReward (512)", True, "imagereward:make_imagereward_512", 3,
            environment="imagereward", only="pictures", packages=("image-reward",),
            about="ImageReward (512): the same with 512 tokens of the prompt, as the evaluators of FreqCa and "
            "cache-dit score",
        ),
        Metric(
            "clip", "single", "CLIP", True, "clip:make_clip", 2, batched=True, packages=("torch", "open-clip-torch"),
            about="CLIP: 100 cos, ViT-L/14 with OpenAI's weights, as open_clip's ViT-L-14-quickgelu",
        ),
        Metric(
            "clip_g", "single", "CLIP (g)", True, "clip:make_clip_g", 2, batched=True,
            packages=("torch", "open-clip-torch"),
            about="CLIP (g): 100 cos, ViT-g/14 trained on LAION-2B (s12B-b42K), which others report",
        ),
        Metric(
            "pickscore", "single", "PickScore", True, "preference:make_pickscore", 3, batched=True,
            packages=("torch", "transformers", "open-clip-torch"),
            about="PickScore v1 (arXiv:2305.01569): the cosine times the model's scale; others divide it by 26",
        ),
        Metric(
            "hpsv2", "single", "HPSv2.1", True, "preference:make_hpsv2", 2, batched=True,
            packages=("torch", "open-clip-torch", "torchvision"),
            about="HPSv2.1 (arXiv:2306.09341): 100 cos, of the whole picture with a black margin",
        ),
        Metric(
            "geneval", "files", "GenEval", True, "geneval:make_geneval", 3, unit="share", details=GENEVAL, pooled=True,
            only="pictures", packages=("torch", "transformers", "open-clip-torch"),
            about="GenEval (arXiv:2310.11513): its prompts and rules, with Mask2Former's own weights in the place of "
            "MMDetection's; the mean over six tasks, not comparable with published values beyond that",
        ),
        Metric(
            "musiq", "files", "MUSIQ", True, digits=2, environment="musiq", only="pictures",
            packages=("pyiqa", "torch", "pillow"),
            about="MUSIQ (arXiv:2108.05997): technical quality as people rated KonIQ-10k, 0 to 100; it reads no prompt",
        ),
        Metric(
            "clipiqa", "files", "CLIP-IQA", True, digits=3, environment="clipiqa", only="pictures",
            packages=("pyiqa", "torch", "pillow"),
            about="CLIP-IQA (arXiv:2207.12396): is the picture nearer to good, sharp and noise-free than to the "
            "contrary, 0 to 1; pyiqa's five pairs of words, where the paper has one; it reads no prompt",
        ),
        Metric(
            "fid", "set", "FID", False, "fid:make_fid", 2, pooled=True, environment="fid", only="pictures",
            packages=("clean-fid", "torch", "pillow"),
            about="FID: from the set of samples to that of the reference's, not to photographs; clean-fid's features",
        ),
        Metric(
            "kid", "set", "KID x 1000", False, "fid:make_kid", 3, 1000, pooled=True, environment="fid",
            only="pictures", packages=("clean-fid", "torch", "pillow"),
            about="KID: of the same sets and features as FID, unbiased, over all pairs of samples",
        ),
        Metric(
            "vbench", "files", "VBench %", True, "vbench:make_vbench", 2, factor=100, unit="share", details=DIMENSIONS,
            about="VBench: the Quality Score of its seven quality dimensions, each on every clip (custom input); "
            "published scores take each dimension on prompts of its own: that is vbench_standard",
            environment="vbench", only="clips", packages=("vbench",),
        ),
        Metric(
            "vbench_standard", "files", "VBench (standard) %", True, "vbench:make_vbench_standard", 2, factor=100,
            unit="share", details=tuple(f"standard_{name}" for name in DIMENSIONS),
            about="VBench (standard): the Quality Score with each dimension on the prompts that VBench has for it, as "
            "published scores are; still clips are not filtered for temporal_flickering",
            pooled=True, environment="vbench", only="clips", packages=("vbench",),
        ),
        Metric(
            "judge", "files", "Judge", True, "judge:make_judge", 3, variable="SPECTRUM_BENCH_JUDGE",
            about="Judge: by a command of the evaluator's own, which summary.json names",
        ),
        Metric(
            "caption", "single", "Caption %", True, "caption:make_caption", 1, factor=100, unit="share", unrelated=0.5,
            details=("things", "sizes", "relation", "background", "motion"), packages=("torch",),
        ),
        Metric(
            "psnr_uint8_wrapped", "paired", "PSNR uint8 (wrong) dB", True, "pixel:make_psnr_uint8_wrapped", 2,
            unit="dB", perfect=100.0, packages=("numpy",),
            about="PSNR uint8 (wrong): what arithmetic that wraps at 256 gives, to tell where a published value may "
            "come from (docs/psnr.md)",
        ),
    )
}  # fmt: skip
DEFAULT = ("psnr", "ssim", "lpips", "caption")  # for a model whose configuration lists none


def chosen(model: ModelFacts, wanted: str | None = None) -> list[str]:
    """The metrics in `wanted` ("psnr,clip", or "as:freqca" for those of a paper's tables), or else those that the model
    lists.

    Raises:
        BadValue: there is no such metric or paper.
    """
    if wanted and wanted.startswith(papers.PREFIX):
        paper = papers.published(wanted)
        wanted = ",".join(paper.clips if model.fps else paper.pictures)
    names = wanted.split(",") if wanted else model.metrics or DEFAULT
    for name in names:
        if name not in METRICS:
            given = f"metrics={wanted}" if wanted else "model.metrics"
            raise BadValue(f"{given}: there is no metric {name}: choose of {', '.join(METRICS)}")
    return [name for name in METRICS if name in names]


def together() -> dict[str, tuple[str, ...]]:
    """More names that download.py takes: as:<paper> for all that the paper's tables need here, and each metric whose
    weights have another one's name."""
    of_papers = {f"{papers.PREFIX}{name}": (*paper.pictures, *paper.clips) for name, paper in papers.PAPERS.items()}
    metrics = {name: (name,) for name, metric in METRICS.items() if metric.environment not in (None, name)}
    read = {name: METRICS[name].environment or name for name in METRICS}
    fetched = weights()
    return {
        word: tuple(dict.fromkeys(read[name] for name in names if read[name] in fetched))
        for word, names in (metrics | of_papers).items()
    }


def weights() -> dict[str, tuple[Entry, ...]]:
    """The files that each metric or environment reads, for download.py. Metrics that read none are left out."""
    in_process = {name: metric.weights() for name, metric in METRICS.items() if not metric.environment}
    isolated = {metric.environment: metric.weights() for metric in METRICS.values() if metric.environment}
    return {name: entries for name, entries in (in_process | isolated).items() if entries}
