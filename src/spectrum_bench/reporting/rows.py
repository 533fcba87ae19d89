"""The typed model of a report: rows with their costs and results, differences from a baseline, the table of both."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from spectrum_bench.sampling.identity import called
from spectrum_bench.sampling.records import Record
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import Estimate

Role = Literal["reference", "noise floor", "harness", "method"]
Verdict = Literal["better", "worse", "tie", "within the noise floor"]


@dataclass(frozen=True)
class Latents:
    """RMSE of the latents against the reference's after each step, a mean over `prompts` prompts."""

    rmse: list[float]
    prompts: int


@dataclass(frozen=True)
class Digest:
    """The part of an experiment's summary.json that a report needs."""

    metrics: tuple[str, ...] = ()  # in the order of METRICS
    unavailable: Mapping[str, str] = field(default_factory=dict)  # metric -> why it has no score
    sets: Mapping[str, Estimate] = field(default_factory=dict)  # metric of sets -> its number; n counts samples
    latents: Latents | None = None
    itself: Mapping[str, float] = field(default_factory=dict)  # metric -> the reference scored against itself
    shuffled: Mapping[str, float] = field(default_factory=dict)  # metric -> against other prompts' samples
    doubts: Sequence[str] = ()  # where these are hardly worse
    judge: Mapping[str, float] = field(default_factory=dict)  # kind of picture -> the judge's accuracy


@dataclass(frozen=True)
class Costs:
    """The costs of a row's samples, in seconds and bytes; None for a cost that was not measured."""

    steps: int
    passes: float | None  # computed steps, mean over the samples
    latency_s: float | None = None  # median over the samples
    latency_p90_s: float | None = None
    full_step_s: float | None = None
    skipped_step_s: float | None = None
    cache_bytes: int | None = None
    peak_memory_bytes: int | None = None
    speedup: Estimate | None = None  # the reference's median latency divided by this row's
    flops: float | None = None  # of the denoiser, mean over the samples; a multiply-add is two
    flops_speedup: float | None = None  # those of all steps of the reference divided by these
    not_told: str = ""  # why passes and cache_bytes are None
    no_flops: str = ""  # why both are None
    no_latency: str = ""  # why latency_s is None
    no_skipped_step: str = ""  # why skipped_step_s is None
    no_speedup: str = ""  # why speedup is None


@dataclass(frozen=True)
class Result:
    """A row's mean score in one metric, and its paired differences from others."""

    estimate: Estimate
    minus_reference: Estimate | None = None  # None where the reference has no score of its own
    minus_best: Estimate | None = None  # the best method's score subtracted; None where methods are not compared
    best: bool = False  # no method that costs as little is better by more than chance, and it is so than one of them
    front: bool = False  # no method that costs as little has a better mean


@dataclass(eq=False)
class Row:
    """One experiment: its records, and for each metric a list of scores in the order of the records.

    `tables.build` fills in costs, results, missing and name. Two rows are never equal.
    """

    experiment: Experiment
    role: Role
    records: list[Record]
    scores: dict[str, list[float]]  # NaN for a sample that was not scored
    digest: Digest
    costs: Costs = Costs(steps=0, passes=0.0)
    results: dict[str, Result] = field(default_factory=dict)  # metric -> result, for metrics that have one
    missing: dict[str, str] = field(default_factory=dict)  # metric -> why it has no result
    name: str = ""  # short; together with the passes it is unique

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the experiment was scored by, in the order of tables."""
        return self.digest.metrics

    @property
    def latents(self) -> list[float] | None:
        """RMSE of the latents after each step; None for the reference, or if latents were not kept."""
        return self.digest.latents.rmse if self.digest.latents and self.role != "reference" else None

    @property
    def subjects(self) -> list[str]:
        """What each sample is of: its prompt and what stood beside it."""
        return [record.subject for record in self.records]

    @property
    def prompt_count(self) -> int:
        return len(set(self.subjects))

    @property
    def passes(self) -> str:
        """Passes of steps: 14/50, or 13.98/50; rows are sorted by their mean, and 13.98 is none of 14."""
        if self.costs.passes is None:
            return "—"
        return f"{round(self.costs.passes, 2):g}/{self.costs.steps}"

    @property
    def elsewhere(self) -> bool:
        """Whether other code made the samples, so that only what was told is known."""
        return self.records[0].elsewhere

    @property
    def algo(self) -> str:
        return self.records[0].algo

    @property
    def student(self) -> str:
        """The name of a model that is distilled from another one, whose run may be the reference; else empty."""
        return self.records[0].model if self.experiment.model.get("teacher") else ""

    @property
    def forecaster(self) -> str:
        """Of a peer, which decides and forecasts by itself, its own method."""
        return _peers_method(self.site) if self.schedule == "observed" else called(self.records[0].forecaster)

    @property
    def schedule(self) -> str:
        return called(self.records[0].schedule)

    @property
    def site(self) -> str:
        return self.records[0].site

    def mean(self, metric: str) -> float | None:
        """The mean score, or None."""
        return self.results[metric].estimate.mean if metric in self.results else None


def _peers_method(site: str) -> str:
    """DiffusersCache(config=TaylorSeerCacheConfig) -> TaylorSeerCache; CacheDiT(calibrator=FoCaCalibratorConfig) ->
    DBCache, FoCaCalibrator."""
    words = [word.partition("=")[2].removesuffix("Config") for word in re.findall(r"(?:config|calibrator)=\w+", site)]
    return ", ".join((["DBCache"] if site.startswith("CacheDiT") else []) + words) or site


@dataclass(frozen=True)
class Difference:
    """The difference of a method's score from the baseline's, over the prompts of both."""

    row: Row
    metric: str
    estimate: Estimate
    p: float  # two-sided, by flipping signs
    p_holm: float  # the same, corrected for the number of methods (Holm 1979)
    wins: float  # share of prompts on which the method is better; a tie counts half
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """The methods' differences from a baseline."""

    baseline: Row
    differences: list[Difference]


@dataclass
class Table:
    """The rows (the reference first, then noise floors and the harness itself, then methods), the notes, and the
    differences if there is a baseline."""

    rows: list[Row]
    notes: list[str]
    comparison: Comparison | None = None

    @property
    def reference(self) -> Row:
        return self.rows[0]

    @property
    def methods(self) -> list[Row]:
        return [row for row in self.rows if row.role == "method"]

    @property
    def metrics(self) -> list[str]:
        return shared_metrics(self.rows)


def shared_metrics(rows: list[Row]) -> list[str]:
    """The metrics that all rows were scored by."""
    return [name for name in METRICS if all(name in row.metrics for row in rows)]
