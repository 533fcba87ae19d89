"""The value of one trial in a search for a method's settings under a budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectrum_bench.caching.algorithm import NOCACHE, Algorithm
from spectrum_bench.errors import NotFinite
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.models import open_pipeline
from spectrum_bench.sampling.sampler import Sampler
from spectrum_bench.sampling.settings import RunSettings
from spectrum_bench.scoring.metrics.pixel import psnr


@dataclass(frozen=True)
class Trial:
    """Mean passes, mean PSNR in dB against uncached samples of the same prompts, and the value for the search."""

    passes: float
    quality: float
    value: float


class References:
    """A pipeline and the uncached samples of some jobs, made once for all trials of a process."""

    def __init__(self, settings: RunSettings, jobs: Sequence[Job]):
        self.pipe: Any = open_pipeline(settings)[0]
        plain = Sampler.of(self.pipe, NOCACHE, settings)
        self.samples: list[np.ndarray] = [plain.sample(job)[0] for job in jobs]


def trial(
    references: References, algorithm: Algorithm, settings: RunSettings, jobs: Sequence[Job], most: float
) -> Trial:
    """Sample the jobs with the algorithm. The value is the mean PSNR if the mean passes are at most `most`; otherwise
    it is `most` minus the passes, which is negative and leads the search back to the budget.

    Raises:
        DoesNotFit: the algorithm does not fit the model.
    """
    sampler = Sampler.of(references.pipe, algorithm, settings)
    try:
        samples, figures = zip(*(sampler.sample(job) for job in jobs), strict=True)
    except NotFinite:  # the worst value; the search goes on
        return Trial(float("nan"), float("nan"), -settings.num_inference_steps)
    passes = sum(each.nfe for each in figures) / len(jobs)
    quality = sum(map(psnr, samples, references.samples)) / len(jobs)
    return Trial(passes, quality, quality if passes <= most else most - passes)
