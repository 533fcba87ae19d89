"""Some samples of a finished run, made anew: are they what the run's small files say?"""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.errors import UserError
from spectrum_bench.forecasters import reuse
from spectrum_bench.sampling import media, reading
from spectrum_bench.sampling.identity import identity, sample_id
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.records import Record, sample_file
from spectrum_bench.sampling.sampler import Sampler
from spectrum_bench.sampling.settings import RunSettings
from spectrum_bench.sampling.worker import open_prepared
from spectrum_bench.schedules import full
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.metrics.pixel import psnr

TOLERANCE = 0.5  # dB by which a score may differ on other hardware


@dataclass(frozen=True)
class Remade:
    """One sample, made anew.

    Attributes:
        named: whether config.yaml gives the sample's id, so that it is the configuration that made it.
        same_steps, same_bits: whether the computed steps and the bytes of the sample's file are as sent.
        distance: PSNR to the sample that was sent, in dB; None if none was sent or the bits are the same.
        score, sent: PSNR to the plain pipeline's sample in dB, made anew and as sent; None if none was sent.
    """

    record: Record
    named: bool
    same_steps: bool
    same_bits: bool
    distance: float | None
    score: float | None
    sent: float | None

    @property
    def ok(self) -> bool:
        """Whether the sample is what was sent: its bits, or a score that is near enough."""
        near = self.score is not None and self.sent is not None and abs(self.score - self.sent) <= TOLERANCE
        return self.named and (self.same_bits or self.same_steps and near)


def remake(experiment: Experiment, settings: RunSettings, algorithm: Algorithm, count: int) -> Iterator[Remade]:
    """Make `count` samples of a run anew, spread over its prompts, each with the plain pipeline's if scores were sent.

    Raises:
        UserError: a sample has an input beside its prompt, which a record does not hold.
    """
    scores, fps = sent_scores(experiment.folder), settings.model.fps
    pipe, _ = open_prepared(settings)
    cached = Sampler.of(pipe, algorithm, settings)
    plain = Sampler.of(pipe, Algorithm("nocache", full, reuse, None), settings)
    for record in spread(experiment.records, count):
        job, sent = job_of(record), scores.get(record.id)
        pixels, figures = cached.sample(job)
        data = next(iter(media.encode(pixels, fps).values()))
        same = hashlib.sha256(data).hexdigest() == record.sha256
        file = sample_file(experiment.folder, record)
        yield Remade(
            record,
            named=names(settings, record, experiment.records),
            same_steps=figures.computed_steps == record.computed_steps,
            same_bits=same,
            distance=None if same or not file.is_file() else psnr(pixels, media.read(file)),
            score=psnr(pixels, plain.sample(job)[0]) if sent is not None else None,
            sent=sent,
        )


def job_of(record: Record) -> Job:
    """
    Raises:
        UserError: the sample has an input beside its prompt, which the record does not hold.
    """
    if record.inputs:
        raise UserError(
            f"sample {record.id} has {', '.join(record.inputs)} beside its prompt: run the experiment again"
        )
    return Job(record.id, record.prompt_index, record.prompt, record.seed)


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """So many records, from the first to the last one."""
    places = np.linspace(0, len(records) - 1, min(count, len(records)))
    return [records[round(place)] for place in places]


def names(settings: RunSettings, record: Record, records: Sequence[Record]) -> bool:
    """Whether the settings give the record's id."""
    before = sum(
        each.prompt == record.prompt and each.seed == record.seed and each.prompt_index < record.prompt_index
        for each in records
    )
    return sample_id(identity(settings), record.prompt, record.seed, before) == record.id


def sent_scores(folder: Path) -> dict[str, float]:
    """PSNR by the sample's id from metrics.csv; empty without it.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    lines = csv.DictReader(reading.read_text(path, reading.TABLE).splitlines())
    try:
        return {line["id"]: float(line["psnr"]) for line in lines if line.get("psnr")}
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{path} is no table of scores with the columns id and psnr: ask for it again") from None
