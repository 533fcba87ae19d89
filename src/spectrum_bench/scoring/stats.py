"""Means with bootstrap intervals over prompts, tests of paired differences, and a shuffle that moves every prompt."""

import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, permutation_test

Values = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Estimate:
    """A mean (or a ratio of medians) with its 95 % interval. `low` and `high` are None where the data give none."""

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 0  # number of prompts; for a ratio, number of samples


class EstimateJson(TypedDict):
    """An estimate in summary.json."""

    mean: float | None
    interval: list[float] | None
    n: int


def as_json(estimated: Estimate | None) -> EstimateJson:
    """The estimate as summary.json holds it. Without an estimate, n is 0 and the rest is null."""
    if estimated is None:
        return {"mean": None, "interval": None, "n": 0}
    bounds = (estimated.low, estimated.high)
    interval = [bound for bound in bounds if bound is not None] or None
    return {"mean": estimated.mean, "interval": interval, "n": estimated.n}


def effort(count: int) -> dict[str, int]:
    """Arguments that bound scipy's resampling of `count` values: how many resamples, and how many at a time.

    There are 10,000 resamples up to 2,000 values, and fewer beyond, so that 10,000 prompts take no longer than 2,000
    and memory stays within some 50 MB.
    """
    return {"n_resamples": max(1000, min(10_000, 2 * 10**7 // count)), "batch": max(1, min(1000, 10**6 // count))}


def by_prompt(values: Iterable[float], prompts: Iterable[Hashable]) -> Values:
    """One value a prompt: the mean over its seeds. NaN stands for a missing value and is left out. Where pictures stand
    beside the prompts, `prompts` are the records' subjects.

    Two samples of one prompt are not independent, so the prompt is what the bootstrap draws.
    """
    groups: dict[Hashable, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        if not np.isnan(value):
            groups.setdefault(prompt, []).append(value)
    return np.array([np.mean(group) for group in groups.values()])


def interval(values: Values) -> tuple[float, float] | None:
    """95 % BCa bootstrap interval of the mean (Efron 1987). None with fewer than two values, or if all are equal."""
    if len(values) < 2 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of degenerate data and returns NaN; here that is None
        result = bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(0), **effort(len(values)))
    low, high = map(float, result.confidence_interval)
    return (low, high) if np.isfinite(low) and np.isfinite(high) else None


def estimate(values: Iterable[float], prompts: Iterable[Hashable]) -> Estimate | None:
    """The mean over prompts with its interval; n counts prompts. None where every value is NaN."""
    means = by_prompt(values, prompts)
    if not len(means):
        return None
    low, high = interval(means) or (None, None)
    return Estimate(float(means.mean()), low, high, len(means))


def ratio_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of median(a) / median(b), which are resampled independently; None with fewer
    than two values of either."""
    if min(len(a), len(b)) < 2:
        return None

    def ratio(a: Values, b: Values, axis: int) -> Values:
        return np.asarray(np.median(a, axis=axis) / np.median(b, axis=axis))

    rng = np.random.default_rng(0)
    result = bootstrap((a, b), ratio, method="percentile", rng=rng, **effort(max(len(a), len(b))))
    low, high = map(float, result.confidence_interval)
    return low, high


def tied(differences: Iterable[float], prompts: Iterable[Hashable]) -> bool:
    """Whether the interval of paired differences holds 0, so that neither side is better."""
    means = by_prompt(differences, prompts)
    if len(means) < 2:
        return True
    bounds = interval(means)
    return bool(np.allclose(means, 0)) if bounds is None else bounds[0] <= 0 <= bounds[1]


def derangement(prompts: Sequence[Hashable]) -> list[int] | None:
    """For each sample the index of a sample with another prompt, by a fixed shuffle. None if there is only one
    prompt."""
    first: dict[Hashable, int] = {}
    for i, prompt in enumerate(prompts):
        first.setdefault(prompt, i)
    order = list(dict.fromkeys(reversed(prompts)))
    if len(order) < 2:
        return None
    np.random.default_rng(0).shuffle(order)
    following = dict(zip(order, [*order[1:], order[0]], strict=True))  # a cycle moves every prompt
    return [first[following[prompt]] for prompt in prompts]


def sign_flip(values: Values) -> float:
    """Two-sided p-value of paired differences with mean zero: their signs are flipped at random. 1 with fewer than two
    values.

    Args:
        values: one difference a prompt.
    """
    if len(values) < 2 or not np.any(values):
        return 1.0
    rng = np.random.default_rng(0)
    result = permutation_test((values,), np.mean, permutation_type="samples", rng=rng, **effort(len(values)))
    return float(result.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the k-th smallest of n is multiplied by n - k + 1, and a larger
    p-value never becomes smaller than one before it."""
    corrected, worst = [0.0] * len(p), 0.0
    for k, i in enumerate(np.argsort(p)):
        worst = max(worst, min(1.0, (len(p) - k) * p[i]))
        corrected[i] = worst
    return corrected
