"""FID and KID: how far the set of samples is from the set of the reference's, in Inception-v3's features as clean-fid
makes them (Parmar, Zhang and Zhu 2022, arXiv:2104.11222). Neither says anything of a single sample."""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.scoring.metrics import isolated
from spectrum_bench.scoring.metrics.contracts import ModelFacts, SetScorer

Features = NDArray[np.float64]  # (N, D)
Items = Sequence[tuple[Path, str]]

FEWEST = 2000  # samples; of fewer, FID is mostly its own bias (Chong and Forsyth 2020, arXiv:1911.07023)
ROWS = 1024  # of a kernel matrix at a time


def make_fid(model: ModelFacts) -> SetScorer:
    """The Frechet distance of both sets."""
    return partial(distance, "fid", frechet, isolated.weights("fid"))


def make_kid(model: ModelFacts) -> SetScorer:
    """The kernel distance of both sets."""
    return partial(distance, "kid", kernel, isolated.weights("fid", "kid"))


def distance(
    metric: str,
    between: Callable[[Features, Features], float],
    weights: Sequence[Path],
    samples: Items,
    references: Items,
) -> float:
    """A distance between the features of both lists of (path, prompt).

    Raises:
        MetricUnavailable: there are fewer than FEWEST samples, or one cannot be read.
    """
    if (count := len(samples)) < FEWEST:
        reason = f"{count} samples say nothing of a distribution"
        raise MetricUnavailable(metric, reason, f"score at least {FEWEST:,} samples")
    return between(features(metric, weights, samples), features(metric, weights, references))


def features(metric: str, weights: Sequence[Path], items: Items) -> Features:
    """(N, 2048), kept in <experiment>/scores like other scores.

    Raises:
        MetricUnavailable: a picture has none.
    """
    results = isolated.results("fid", weights, items)
    if without := [path for (path, _), result in zip(items, results, strict=True) if "features" not in result]:
        raise MetricUnavailable(metric, f"{len(without)} pictures have no features ({without[0]})", "see the log")
    vectors = [np.frombuffer(base64.b64decode(result["features"]), "<f4") for result in results]
    return np.stack(vectors).astype(np.float64)


def frechet(a: Features, b: Features) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of the normal distributions with the means and covariances of both
    sets (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

    The trace of the root is that of (R C2 R)^(1/2) with R = C1^(1/2), which is symmetric, so that no part of it is
    imaginary and a singular covariance is no exception.
    """
    apart = a.mean(0) - b.mean(0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(apart @ apart + np.trace(first) + np.trace(second) - 2 * shared)


def kernel(a: Features, b: Features) -> float:
    """The squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased (Binkowski et al. 2018,
    arXiv:1801.01401, eq. 4).

    It is computed of all pairs at once, where others average over 100 random subsets of 1,000: both have the same
    expectation, and this one needs no seed.
    """
    within = sum((_sum(x, x) - _cubed((x * x).sum(1), x.shape[1]).sum()) / (len(x) * (len(x) - 1)) for x in (a, b))
    return float(within - 2 * _sum(a, b) / (len(a) * len(b)))


def _sum(a: Features, b: Features) -> float:
    """The sum of the kernel over all pairs."""
    return float(sum(_cubed(a[i : i + ROWS] @ b.T, a.shape[1]).sum() for i in range(0, len(a), ROWS)))


def _cubed(products: NDArray[Any], width: int) -> NDArray[Any]:
    kernels: NDArray[Any] = (products / width + 1) ** 3
    return kernels
