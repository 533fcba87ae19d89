"""The metrics that an evaluation computes. To add one: a function in a module here and a line in METRICS."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


class MetricUnavailable(Exception):
    """A metric that cannot be computed here. Tables show a dash and this reason, never a made-up number."""

    def __init__(self, metric: str, missing: str, fix: str):
        super().__init__(f"{metric}: {missing}; {fix}")


@dataclass(frozen=True)
class Metric:
    """One column of scores.

    `fn` is "module:function" below this package, imported on use. The function takes the experiment's
    configuration, raises MetricUnavailable, or returns a scorer:
        paired: (sample, reference) -> float
        single: (sample, prompt) -> dict of floats: the metric and its `details`
    Pictures are (H, W, 3) uint8; a scorer raises ValueError for pictures that it cannot take. Of clips, (F, H, W, 3),
    a paired scorer sees one frame at a time, and their mean counts; a single one sees the clip.
    """

    name: str
    kind: str  # "paired" | "single"
    unit: str
    higher_is_better: bool
    fn: str
    digits: int = 2  # after the point, in tables
    perfect: float | None = None  # of a picture and itself
    unrelated: float | None = None  # pictures of different prompts must, on average, be worse than this
    details: tuple[str, ...] = ()

    def scorer(self, config: dict) -> Callable:
        module, function = self.fn.split(":")
        return getattr(import_module(f"{__name__}.{module}"), function)(config)

    def worse(self, a: float, b: float) -> bool:
        return a < b if self.higher_is_better else a > b


METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "paired", "dB", True, "pixel:make_psnr", 2, perfect=100.0, unrelated=25.0),
        Metric("ssim", "paired", "", True, "pixel:make_ssim", 3, perfect=1.0, unrelated=0.95),
        Metric("lpips", "paired", "", False, "pixel:make_lpips", 3, perfect=0.0, unrelated=0.05),
        Metric(
            "caption", "single", "share", True, "caption:make_caption", 3, unrelated=0.5,
            details=("things", "sizes", "relation", "background", "motion"),
        ),
    )
}  # fmt: skip
