"""Means with bootstrap intervals over prompts, paired differences, and a shuffle that moves every prompt."""

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import bootstrap, permutation_test


def effort(values: int) -> dict[str, int]:
    """How often scipy draws so many values anew, and how many draws it holds at a time: 10,000 up to two thousand
    values, then fewer, so that ten thousand prompts take no longer and memory stays within some 50 MB."""
    return {"n_resamples": max(1000, min(10_000, 2 * 10**7 // values)), "batch": max(1, min(1000, 10**6 // values))}


def by_prompt(values: Sequence[float], prompts: Sequence[Hashable]) -> np.ndarray:
    """One value a prompt: the mean over its seeds. NaN means not measured and is left out.

    Two samples of one prompt are not independent, so the prompt is what the bootstrap draws.
    """
    groups: dict[Hashable, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        if not np.isnan(value):
            groups.setdefault(prompt, []).append(value)
    return np.array([np.mean(group) for group in groups.values()])


def interval(values: np.ndarray) -> list[float] | None:
    """95 % BCa bootstrap interval of the mean (Efron 1987). None where the data cannot tell one: fewer than
    two values, or all alike."""
    if len(values) < 2 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of degenerate data and returns NaN: None here
        found = bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(0), **effort(len(values)))
    low, high = map(float, found.confidence_interval)
    return [low, high] if np.isfinite(low) and np.isfinite(high) else None


def estimate(values: Sequence[float], prompts: Sequence[Hashable]) -> dict:
    """{"mean", "interval", "n"}: n counts prompts; mean is None where n is 0."""
    each = by_prompt(values, prompts)
    mean = float(each.mean()) if len(each) else None
    return {"mean": mean, "interval": interval(each), "n": len(each)}


def ratio_interval(a: Sequence[float], b: Sequence[float]) -> list[float] | None:
    """95 % percentile bootstrap interval of median(a) / median(b), a and b drawn apart; None with fewer than two."""
    if min(len(a), len(b)) < 2:
        return None

    def ratio(a, b, axis):
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    rng = np.random.default_rng(0)
    found = bootstrap((a, b), ratio, method="percentile", rng=rng, **effort(max(len(a), len(b))))
    return [float(bound) for bound in found.confidence_interval]


def tied(differences: Sequence[float], prompts: Sequence[Hashable]) -> bool:
    """Whether paired differences leave open which of two is better: their interval holds 0."""
    each = by_prompt(differences, prompts)
    if len(each) < 2:
        return True
    found = interval(each)
    return bool(np.allclose(each, 0)) if found is None else found[0] <= 0 <= found[1]


def derangement(prompts: Sequence[Hashable]) -> list[int] | None:
    """For each sample the index of one with another prompt, by a fixed shuffle. None if all have one prompt."""
    first = {prompt: i for i, prompt in reversed(list(enumerate(prompts)))}
    order = list(first)
    if len(order) < 2:
        return None
    np.random.default_rng(0).shuffle(order)
    following = dict(zip(order, [*order[1:], order[0]], strict=True))  # a cycle moves every prompt
    return [first[following[prompt]] for prompt in prompts]


def sign_flip(values: np.ndarray) -> float:
    """Two-sided p that paired differences have mean zero, one value a prompt, by flipping their signs at random; 1 with
    fewer than two."""
    if len(values) < 2 or not np.any(values):
        return 1.0
    rng = np.random.default_rng(0)
    found = permutation_test((values,), np.mean, permutation_type="samples", rng=rng, **effort(len(values)))
    return float(found.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the k-th smallest of n times n - k + 1, never falling."""
    out, worst = [0.0] * len(p), 0.0
    for k, i in enumerate(np.argsort(p)):
        worst = max(worst, min(1.0, (len(p) - k) * p[i]))
        out[i] = worst
    return out
