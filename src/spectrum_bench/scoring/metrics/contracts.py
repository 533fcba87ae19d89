"""The types of metrics: a Metric, the facts of a model that it may use, and the functions that score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from spectrum_bench.errors import MetricUnavailable, UserError
from spectrum_bench.sampling.catalogue import Entry
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.scoring.metrics import isolated
from spectrum_bench.scoring.metrics.isolated import header

Scores = dict[str, float]
PairedScorer = Callable[[Pixels, Pixels], float]
PairedBatchScorer = Callable[[Sequence[Pixels], Sequence[Pixels]], list[float]]
SingleScorer = Callable[[Pixels, str], Scores]
SingleBatchScorer = Callable[[Sequence[Pixels], Sequence[str]], list[Scores]]
FilesScorer = Callable[[Sequence[tuple[Path, str]]], list[Scores]]
SetScorer = Callable[[Sequence[tuple[Path, str]], Sequence[tuple[Path, str]]], float]
Scorer = PairedScorer | PairedBatchScorer | SingleScorer | SingleBatchScorer | FilesScorer | SetScorer


class Unscorable(UserError, ValueError):
    """Pixels that a metric cannot take. The message continues a sentence that begins with the sample's path."""


@dataclass(frozen=True)
class ModelFacts:
    """The facts that a metric may use of the model whose samples it scores."""

    metrics: tuple[str, ...] = ()  # computed by default; () for DEFAULT
    judge: str | None = None  # folder of the caption judge, below the repository's root
    repo: str | None = None
    fps: float | None = None  # frames a second; None for a model of pictures
    random: bool = False  # the weights are random, and samples show nothing

    @classmethod
    def of(cls, model: dict[str, Any]) -> "ModelFacts":
        """From the `model` node of a run's config.yaml."""
        random = model.get("init") == "random"
        metrics = tuple(model.get("metrics") or ())
        return cls(metrics, model.get("judge"), model.get("repo"), model.get("fps"), random)


@dataclass(frozen=True)
class Metric:
    """One column of scores.

    `fn` is "module:function" below this package, imported on use. The function takes the ModelFacts, and raises
    MetricUnavailable or returns a scorer:
        paired: (sample, reference) -> float; `batched`: (samples, references) -> floats
        single: (sample, prompt) -> dict of floats, the metric and its `details`; `batched`: (samples, prompts) -> dicts
        files: list of (path, prompt) -> list of such dicts
        set: two such lists, the samples' and the reference's -> float, which belongs to no single sample
    Pictures are (H, W, 3) uint8; a scorer raises Unscorable for pictures that it cannot take. Clips are (F, H, W, 3): a
    paired scorer gets one frame at a time, and the score is the mean over frames; of a `whole` metric it gets the clip,
    as a single scorer does.

    A metric with an `environment` runs isolated/score_<environment>.py in it, and its kind is files. Without `fn` the
    script gets the paths of its weights.
    """

    name: str
    kind: Literal["paired", "single", "files", "set"]
    label: str  # in tables, with its unit; `about` holds what else a reader must know, such as the network
    higher_is_better: bool
    fn: str = ""
    digits: int = 2  # after the point, in tables
    factor: int = 1  # tables show the score times this factor
    unit: str = ""
    perfect: float | None = None  # the score of a picture against itself
    unrelated: float | None = None  # pictures of different prompts must, on average, be worse than this
    details: tuple[str, ...] = ()
    about: str = ""
    pooled: bool = False  # a sample's score depends on the other samples
    batched: bool = False
    whole: bool = False
    packages: tuple[str, ...] = ()  # their versions decide the score, and are written beside it
    only: Literal["pictures", "clips"] | None = None  # what it can score; None: both
    environment: str | None = None
    variable: str = ""  # of the environment, if it names the metric's program: it is written beside the score
    check: float | None = None  # the score by its true weights of the pixels of evaluate.py --check, if it is known

    def scorer(self, model: ModelFacts) -> Scorer:
        """The function that scores samples of this model.

        Raises:
            MetricUnavailable: weights or packages are missing, or the metric cannot score what the model makes.
        """
        made = "clips" if model.fps else "pictures"
        if self.only not in (None, made):
            raise MetricUnavailable(self.name, f"these are {made}", f"it scores {self.only}")
        if self.environment and not self.fn:
            paths = isolated.weights(self.environment, self.name)
            return partial(isolated.score, self.environment, (self.name, *self.details), paths)
        try:
            scorer: Scorer = getattr(self._module, self.fn.split(":")[1])(model)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("spectrum_bench"):
                raise
            missing = f"no package {error.name}"
            raise MetricUnavailable(self.name, missing, 'pip install "spectrum-bench[metrics]"') from None
        return scorer

    def weights(self) -> tuple[Entry, ...]:
        """The files that the metric reads: WEIGHTS[name] of its module, or those in its script's header."""
        if self.environment:
            return header.read(self.environment).weights
        entries: tuple[Entry, ...] = getattr(self._module, "WEIGHTS", {}).get(self.name, ())
        return entries

    @property
    def _module(self) -> Any:
        return import_module(f"spectrum_bench.scoring.metrics.{self.fn.split(':')[0]}")

    def worse(self, a: float, b: float) -> bool:
        return a < b if self.higher_is_better else a > b

    @property
    def title(self) -> str:
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"

    @property
    def own(self) -> str | None:
        """The column with the reference's own score. A metric that compares with the reference has none."""
        return None if self.kind in ("paired", "set") else f"{self.name}_reference"
