"""Metrics are loaded for a model and get samples in batches. An error names the sample that a metric cannot take."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spectrum_bench.errors import MetricUnavailable, UserError
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.metrics.contracts import (
    FilesScorer,
    Metric,
    ModelFacts,
    PairedBatchScorer,
    Scores,
    SetScorer,
    SingleBatchScorer,
    Unscorable,
)

# The most in memory at a time: samples, and bytes of their pixels (21 pictures of 1024x1024, or one clip).
SAMPLES, BYTES = 32, 2**26


@dataclass(frozen=True)
class Item:
    """A sample to score: its pixels, its prompt, and the reference's pixels."""

    path: Path
    prompt: str
    sample: Pixels
    reference: Pixels


@dataclass
class Scorers:
    """Metric -> its function, by kind. `missing`: metric -> why it has no function."""

    paired: dict[str, PairedBatchScorer] = field(default_factory=dict)
    single: dict[str, SingleBatchScorer] = field(default_factory=dict)
    files: dict[str, FilesScorer] = field(default_factory=dict)
    set: dict[str, SetScorer] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def load(model: ModelFacts, names: Iterable[str]) -> Scorers:
    """Load the named metrics. A metric without its weights or packages goes into `missing`."""
    scorers = Scorers()
    for name in names:
        if model.random:
            scorers.missing[name] = f"{name}: random weights show nothing"
            continue
        try:
            getattr(scorers, METRICS[name].kind)[name] = batched(METRICS[name], METRICS[name].scorer(model))
        except MetricUnavailable as reason:
            scorers.missing[name] = str(reason)
    return scorers


def batched(metric: Metric, scorer: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes lists, whatever the metric's own function takes. Pairs are scored side by side: NumPy and
    SciPy let other threads run while they compute."""
    if metric.batched or metric.kind in ("files", "set"):
        return scorer
    if metric.kind == "paired":
        return lambda *lists: list(side_by_side(scorer, *lists))
    return lambda *lists: [scorer(*each) for each in zip(*lists, strict=True)]


def side_by_side(function: Callable[..., Any], *lists: Iterable[Any]) -> Iterator[Any]:
    """As `map`, on all of the processor's cores. Of what is not asked for yet, it computes a few results a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        coming: deque[Future[Any]] = deque()
        for each in zip(*lists, strict=True):
            coming.append(pool.submit(function, *each))
            if len(coming) > 2 * cores:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def windows(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Cut items into lists that fit into memory. Items are read only when their list is made."""
    window: list[Item] = []
    for item in items:
        window.append(item)
        if len(window) == SAMPLES or sum(each.sample.nbytes for each in window) >= BYTES:
            yield window
            window = []
    if window:
        yield window


def score(scorers: Scorers, items: Sequence[Item]) -> list[Scores]:
    """The scores of every paired and single metric for each item.

    Raises:
        UserError: a sample cannot be scored.
    """
    scores: list[Scores] = [{} for _ in items]
    for name, paired in scorers.paired.items():
        made = (by_clip if METRICS[name].whole else by_frame)(name, paired, items)
        for each, value in zip(scores, made, strict=True):
            each[name] = value
    for name, single in scorers.single.items():
        lists = [item.sample for item in items], [item.prompt for item in items]
        for each, values in zip(scores, _named(single, lists, items), strict=True):
            if not isinstance(values, dict) or name not in values:
                raise TypeError(f"metric {name} must return a dict with its name and details, not {values!r:.80}")
            each |= values
    return scores


def number_of(metric: str, value: object) -> float:
    """What a paired metric has returned, as a number.

    Raises:
        TypeError: it is no finite number: the metric's function is wrong.
    """
    if isinstance(value, (int, float, np.number)) and np.isfinite(value):
        return float(value)
    raise TypeError(f"metric {metric} must return one finite number a pair, not {value!r:.80}")


def by_frame(name: str, scorer: PairedBatchScorer, items: Sequence[Item]) -> list[float]:
    """A paired score for each item. The score of a clip is the mean over its frames.

    Raises:
        UserError: a sample and its reference differ in the number of frames, or a sample cannot be scored.
    """
    samples, references = both(items)
    owners = [item for item, sample in zip(items, samples, strict=True) for _ in sample]
    flat = [number_of(name, score) for score in _named(scorer, (sum(samples, []), sum(references, [])), owners)]
    ends = np.cumsum([len(sample) for sample in samples])[:-1]
    return [float(np.mean(scores)) for scores in np.split(np.array(flat), ends)]


def by_clip(name: str, scorer: PairedBatchScorer, items: Sequence[Item]) -> list[float]:
    """The same by a scorer of whole clips."""
    samples, references = both(items)
    clips = [np.stack(each) for each in samples], [np.stack(each) for each in references]
    return [number_of(name, score) for score in _named(scorer, clips, items)]


def both(items: Sequence[Item]) -> tuple[list[list[Pixels]], list[list[Pixels]]]:
    """The frames of each sample, and of its reference.

    Raises:
        UserError: they differ in number.
    """
    pairs = [(frames(item.sample), frames(item.reference)) for item in items]
    for item, (sample, reference) in zip(items, pairs, strict=True):
        if len(sample) != len(reference):
            raise UserError(
                f"{item.path} has {len(sample)} frames and its reference {len(reference)}: make both with the same "
                "num_frames"
            )
    return [sample for sample, _ in pairs], [reference for _, reference in pairs]


def frames(pixels: Pixels) -> list[Pixels]:
    """The frames of a clip, or a picture as the only frame."""
    return list(pixels) if pixels.ndim == 4 else [pixels]


def _named(scorer: Callable[..., list[Any]], lists: tuple[list[Any], ...], owners: Sequence[Item]) -> list[Any]:
    """Call a scorer with lists. If it cannot take an element, the error names the sample that owns it."""
    try:
        return scorer(*lists)
    except Unscorable:
        for owner, *each in zip(owners, *lists, strict=True):
            try:
                scorer(*([one] for one in each))
            except Unscorable as reason:
                raise UserError(f"{owner.path} {reason}") from None
        raise


def score_files(
    scorers: Scorers, samples: Sequence[tuple[Path, str]], targets: Sequence[tuple[Path, str]]
) -> tuple[list[Scores], dict[str, str]]:
    """The scores of each sample by the metrics that read files, with those of its target, by column; and the reason for
    each metric that failed."""
    rows: list[Scores] = [{} for _ in samples]
    failed = {}
    for name, scorer in scorers.files.items():
        try:
            scores, own = scorer(samples), scorer(targets)
        except MetricUnavailable as reason:
            failed[name] = str(reason)
            continue
        for row, values, target_values in zip(rows, scores, own, strict=True):
            row |= values | {str(METRICS[name].own): target_values[name]}
    return rows, failed


def score_sets(
    scorers: Scorers, samples: Sequence[tuple[Path, str]], targets: Sequence[tuple[Path, str]]
) -> tuple[dict[str, float], dict[str, str]]:
    """The distance of both sets by each metric that has one, and the reason for each metric that failed."""
    distances, failed = {}, {}
    for name, scorer in scorers.set.items():
        try:
            distances[name] = number_of(name, scorer(samples, targets))
        except MetricUnavailable as reason:
            failed[name] = str(reason)
    return distances, failed
