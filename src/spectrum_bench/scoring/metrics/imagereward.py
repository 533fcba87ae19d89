"""ImageReward with more of the prompt than its package reads."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from spectrum_bench.scoring.metrics import isolated
from spectrum_bench.scoring.metrics.contracts import FilesScorer, ModelFacts, Scores

TOKENS = 512


def make_imagereward_512(model: ModelFacts) -> FilesScorer:
    """The package's model with 512 tokens of the prompt, as the evaluators of FreqCa (Tammytcl/FreqCa@e0a4bf3,
    flux/evaluate.py) and cache-dit 1.5.3 have it. A prompt of at most 33 tokens gets the same score as with 35."""
    return partial(scorer, isolated.weights("imagereward", "imagereward_512"))


def scorer(weights: Sequence[Path], items: Sequence[tuple[Path, str]]) -> list[Scores]:
    """Scores of (path, prompt) samples, kept beside those with 35 tokens."""
    name = f"imagereward_{TOKENS}"
    return isolated.score("imagereward", (name,), [*weights, str(TOKENS)], items, store=name)
