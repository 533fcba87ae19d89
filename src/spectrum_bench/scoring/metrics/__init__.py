"""The metrics that an evaluation computes. To add one: a function in a module here and a line in METRICS."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Metric:
    """One column of scores.

    `fn` is "module:function" below this package, imported on use. The function takes the experiment's
    configuration, raises MetricUnavailable, or returns a scorer:
        paired: (sample, reference) -> float
        single: (sample, prompt) -> dict of floats: the metric and its `details`
        batch: list of (path, prompt) -> list of such dicts, all at once, in an environment of its own
    Pictures are (H, W, 3) uint8; a scorer raises ValueError for pictures that it cannot take. Of clips, (F, H, W, 3),
    a paired scorer sees one frame at a time, and their mean counts; a single one sees the clip.
    """

    name: str
    kind: str  # "paired" | "single" | "batch"
    label: str  # in tables, with its unit; what else a reader must know of it (the model) is in `about`
    higher_is_better: bool
    fn: str
    digits: int = 2  # after the point, in tables
    factor: int = 1  # tables show so many times the score
    unit: str = ""
    perfect: float | None = None  # of a picture and itself
    unrelated: float | None = None  # pictures of different prompts must, on average, be worse than this
    details: tuple[str, ...] = ()
    about: str = ""
    pooled: bool = False  # a sample's score depends on which others there are

    def scorer(self, config: dict) -> Callable:
        module, function = self.fn.split(":")
        return getattr(import_module(f"{__name__}.{module}"), function)(config)

    def worse(self, a: float, b: float) -> bool:
        return a < b if self.higher_is_better else a > b

    @property
    def title(self) -> str:
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"

    @property
    def own(self) -> str | None:
        """The column that holds the reference's own score; None where the reference is what is compared with."""
        return None if self.kind == "paired" else f"{self.name}_reference"


VBENCH = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "paired", "PSNR dB", True, "pixel:make_psnr", 2, unit="dB", perfect=100.0, unrelated=25.0),
        Metric("ssim", "paired", "SSIM", True, "pixel:make_ssim", 3, perfect=1.0, unrelated=0.95),
        Metric("lpips", "paired", "LPIPS", False, "pixel:make_lpips", 3, perfect=0.0, unrelated=0.05),
        Metric(
            "lpips_vgg", "paired", "LPIPS (VGG)", False, "pixel:make_lpips_vgg", 3, perfect=0.0, unrelated=0.05,
        ),
        Metric(
            "imagereward", "batch", "ImageReward", True, "isolated:make_imagereward", 3,
            about="ImageReward-v1.0 (arXiv:2304.05977) as its package scores: 35 tokens of the prompt",
        ),
        Metric(
            "clip", "single", "CLIP", True, "clip:make_clip", 2,
            about="CLIP: 100 cos, ViT-L/14 with OpenAI's weights, as open_clip's ViT-L-14-quickgelu",
        ),
        Metric(
            "clip_g", "single", "CLIP (g)", True, "clip:make_clip_g", 2,
            about="CLIP (g): 100 cos, ViT-g/14 trained on LAION-2B (s12B-b42K), which others report",
        ),
        Metric(
            "vbench", "batch", "VBench %", True, "isolated:make_vbench", 2, factor=100, unit="share", details=VBENCH,
            about="VBench: the Quality Score of its seven quality dimensions, each on every clip (custom input); "
            "published scores take each dimension on prompts of its own: that is vbench_standard",
        ),
        Metric(
            "vbench_standard", "batch", "VBench (standard) %", True, "isolated:make_vbench_standard", 2, factor=100,
            unit="share", details=tuple(f"standard_{name}" for name in VBENCH),
            about="VBench (standard): the Quality Score with each dimension on the prompts that VBench has for it, as "
            "published scores are; still clips are not filtered for temporal_flickering",
            pooled=True,
        ),
        Metric(
            "caption", "single", "Caption %", True, "caption:make_caption", 1, factor=100, unit="share", unrelated=0.5,
            details=("things", "sizes", "relation", "background", "motion"),
        ),
    )
}  # fmt: skip
DEFAULT = ("psnr", "ssim", "lpips", "caption")  # where a model's configuration names none


def chosen(config: dict, wanted: str | None = None) -> list[str]:
    """The metrics that are asked for ("psnr,clip"), or that the experiment's model names.

    Raises:
        ValueError: there is no such metric.
    """
    names = wanted.split(",") if wanted else (config.get("model") or {}).get("metrics") or DEFAULT
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"there is no metric {unknown[0]}: choose of {', '.join(METRICS)}")
    return [name for name in METRICS if name in names]
