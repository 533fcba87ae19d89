"""summary.json, the result of an evaluation, and the same as lines for a person."""

from collections.abc import Iterator
from typing import Any, NotRequired, TypedDict

from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import EstimateJson


class Source(TypedDict):
    """The reference that an experiment was scored against."""

    path: str
    records_sha256: str
    config_sha256: NotRequired[str]
    samples_sha256: NotRequired[str]


class Unpaired(TypedDict):
    """The number of samples without a partner, in each of the two."""

    experiment: int
    reference: int


class MetricSummary(TypedDict, total=False):
    """One metric over all samples: its estimate, or only the reason why there is none."""

    unavailable: str
    mean: float | None
    interval: list[float] | None  # 95 %, over prompts
    n: int  # prompts; of a metric of sets, samples
    unit: str
    higher_is_better: bool
    details: dict[str, EstimateJson]
    reference: EstimateJson  # the reference's own score
    difference: EstimateJson  # of the sample's score and the reference's, paired


class LatentErrors(TypedDict):
    """RMSE of the latents against the reference's after each step, mean over prompts."""

    prompts: int
    rmse: list[float]


class Anchors(TypedDict):
    """Scores of the reference's samples against themselves (the worst) and against other prompts' samples (the mean;
    None with only one prompt)."""

    itself: dict[str, float]
    shuffled: dict[str, float] | None
    doubts: NotRequired[list[str]]  # where the second are hardly worse than the first


class Summary(TypedDict):
    """The whole of summary.json. What may be missing is missing in schema 1, which commit 6771973 wrote."""

    schema: NotRequired[int]
    experiment: str
    records_sha256: str
    config_sha256: NotRequired[str]
    samples_sha256: NotRequired[str]  # of the files' own hashes
    metrics_sha256: NotRequired[str]
    reference: Source
    samples: int
    unpaired: Unpaired
    seeds: list[int]
    identical_pairs: int
    metrics: dict[str, MetricSummary]
    latents: NotRequired[LatentErrors | None]
    anchors: Anchors
    judge: NotRequired[dict[str, Any] | None]  # judge.json, as its training left it
    versions: dict[str, str]


def describe(summary: Summary) -> Iterator[str]:
    """An experiment's scores, one line for each metric."""
    unpaired = summary["unpaired"]
    if unpaired["experiment"] or unpaired["reference"]:
        samples, references = unpaired["experiment"], unpaired["reference"]
        yield f"left out: {samples} samples and {references} references without a partner"
    for name, metric in summary["metrics"].items():
        yield describe_metric(name, metric)
    yield f"sanity, reference against itself: {_listed(summary['anchors']['itself'])}"
    yield f"sanity, reference against shuffled prompts: {_listed(summary['anchors']['shuffled'])}"
    for doubt in summary["anchors"].get("doubts", []):
        yield f"sanity, in doubt: {doubt}: are the prompts much alike?"


def describe_metric(name: str, metric: MetricSummary) -> str:
    """A metric's mean and interval, or the reason why there is none."""
    if "unavailable" in metric:
        return f"—  {metric['unavailable']}"
    if METRICS[name].kind == "set":
        return f"{name:8} {metric['mean']:.4g} {metric['unit']}  (of the sets of {metric['n']} samples)"
    interval = metric["interval"]
    span = f"95 % in [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "no 95 % interval"
    return f"{name:8} {metric['mean']:.4g} {metric['unit']}  ({span}, {metric['n']} prompts)"


def _listed(anchors: dict[str, float] | None) -> str:
    if anchors is None:
        return "n/a, one prompt only"
    return "  ".join(f"{name} {value:.4g}" for name, value in anchors.items()) or "n/a, no metric compares"
