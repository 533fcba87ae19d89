"""Is a metric ready, and with its true weights, what does it say of a drawn picture? For evaluate.py --check."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling import media
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.scoring.metrics import METRICS, isolated
from spectrum_bench.scoring.metrics.contracts import Metric, ModelFacts
from spectrum_bench.scoring.scorers import Item, Scorers, batched, score

PROMPT = "a checkerboard in many colours"
SIDE, FRAMES, FPS = 256, 5, 8
NEAR = 1e-3  # of a known score: what other devices and versions may change


def readiness() -> Iterator[str]:
    """A line for each metric: that it is ready, or what is missing and what to type. Where its weights are here, the
    line has its score of drawn pixels, which are the same everywhere, and whether that is the score it should have."""
    for name, metric in METRICS.items():
        try:
            scorer = metric.scorer(
                ModelFacts(judge="assets/tiny/flux/judge", fps=FPS if metric.only == "clips" else None)
            )
            yield f"ready  {name}{_beside(metric, scorer)}"
        except MetricUnavailable as reason:
            yield f"—      {reason}"
        except Exception as error:  # a bug of one metric hides no other one
            yield f"broken {name}: {type(error).__name__}: {' '.join(str(error).split())}"


def _beside(metric: Metric, scorer: Any) -> str:
    """What stands behind a metric's name."""
    if metric.environment and not isolated.is_made(metric.environment):
        return ": its environment will be made on first use, some gigabytes"
    if not metric.weights() or metric.pooled:
        return ""
    value = check_score(metric, scorer)
    if metric.check is None:
        return f": {value:.6g} of the drawn pixels; no known value to compare it with"
    if math.isclose(value, metric.check, rel_tol=NEAR):
        return f": {value:.6g} of the drawn pixels, as it should be"
    raise ValueError(f"{value:.6g} of the drawn pixels, and it should be {metric.check:.6g}: are these its weights?")


def check_score(metric: Metric, scorer: Any) -> float:
    """The score of drawn pixels, beside the same moved by some pixels.

    Raises:
        MetricUnavailable: the metric's script cannot score them.
    """
    clip = metric.only == "clips"
    pixels = drawn(clip)
    scorer = batched(metric, scorer)
    if metric.kind != "files":
        item = Item(Path("drawn"), PROMPT, pixels, np.roll(pixels, 5, axis=-2))
        return score(Scorers(**{metric.kind: {metric.name: scorer}}), [item])[0][metric.name]
    with tempfile.TemporaryDirectory() as folder:
        suffix, data = next(iter(media.encode(pixels, FPS if clip else None).items()))
        path = Path(folder) / "samples" / f"drawn{suffix}"
        path.parent.mkdir()
        path.write_bytes(data)
        value: float = scorer([(path, PROMPT)])[0][metric.name]
    if math.isnan(value):
        raise MetricUnavailable(metric.name, "it cannot score the drawn pixels", "the reason stands above")
    return value


def drawn(clip: bool) -> Pixels:
    """A picture, or a clip in which it moves."""
    y, x = np.mgrid[:SIDE, :SIDE]
    picture = np.stack([x, y, (x // 32 + y // 32) % 2 * 255], axis=-1).astype(np.uint8)
    return np.stack([np.roll(picture, 3 * i * i, axis=1) for i in range(FRAMES)]) if clip else picture
