"""Experiment directories for evaluations and reports: configuration, records, pixels, pairs of samples."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import psutil
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import media, reading
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.sampling.reading import Damaged, check_file, misfits, parse_yaml, read_text
from spectrum_bench.sampling.records import Record, read_records, sample_file
from spectrum_bench.sampling.runtime import RuntimeSettings
from spectrum_bench.sampling.settings import DESCRIPTIVE, SCHEMA, ModelSettings
from spectrum_bench.sampling.text import printable
from spectrum_bench.scoring.metrics.contracts import ModelFacts

# Defaults of model settings. A newer config.yaml leaves them out; an older one may have them.
UNNAMED = {entry.name: entry.default for entry in fields(ModelSettings)} | {"scheduler": {}, "arguments": {}}

LATENTS = 2**32  # bytes of the latents of a sample's steps
# What config.yaml has at least, or may have, that scores and tables read.
CONFIG: dict[str, Any] = {"exp_name": str | int | float | None, "schema": int, "model": dict[str, Any] | None}
CONFIG |= {"runtime": dict[str, Any] | None}
MODEL: dict[str, Any] = {"name": str | None, "judge": str | None, "metrics": list[str] | None, "fps": float | None}
MODEL |= {"repo": str | None, "note": str | None, "width": int, "height": int}

log = logging.getLogger(__name__)


class Digests(TypedDict):
    """SHA-256 of a run's records, which hold times and so tell it even from its own repetition, of its settings, and
    of its samples' hashes."""

    records_sha256: str
    config_sha256: str
    samples_sha256: str


@dataclass(frozen=True)
class Experiment:
    """A finished run: its resolved configuration and its records."""

    folder: Path
    config: dict[str, Any]  # config.yaml
    records: list[Record]

    @property
    def name(self) -> str:
        return printable(str(self.config.get("exp_name") or self.folder.resolve().name))

    @property
    def model(self) -> dict[str, Any]:
        """The model's settings."""
        return self.config.get("model") or {}

    @property
    def facts(self) -> ModelFacts:
        """The facts of the model that metrics may use."""
        return ModelFacts.of(self.model)

    @property
    def runtime(self) -> dict[str, Any]:
        """The settings of how the network runs (batch_size, compile, attention, the model's offload) that differ from
        their defaults."""
        plain = asdict(RuntimeSettings()) | {"offload": UNNAMED["offload"]}
        settings = (self.config.get("runtime") or {}) | {"offload": self.model.get("offload", plain["offload"])}
        return {key: value for key, value in settings.items() if value != plain.get(key)}

    @property
    def steps(self) -> int:
        return max(r.num_inference_steps for r in self.records)

    @cached_property
    def by_key(self) -> dict[tuple[int, int], Record]:
        """(prompt index, seed) -> record."""
        return {(r.prompt_index, r.seed): r for r in self.records}

    @cached_property
    def digests(self) -> Digests:
        """What tells this state of the run from any other."""
        files = "".join(f"{r.id} {r.sha256 or _sha256(self.sample(r))}\n" for r in self.records)
        return {
            "records_sha256": _sha256(self.folder / "records.jsonl"),
            "config_sha256": _sha256(self.folder / "config.yaml"),
            "samples_sha256": hashlib.sha256(files.encode()).hexdigest(),
        }

    @property
    def is_full(self) -> bool:
        """Whether every step of every sample is computed."""
        return all(r.nfe == r.num_inference_steps for r in self.records)

    def latents(self, record: Record) -> NDArray[np.float32] | None:
        """The scheduler's latents after each step, (T, ...) float32; None if they were not kept."""
        path = self.folder / "latents" / f"{record.id}.safetensors"
        try:
            check_file(path, LATENTS)
            latents = load_file(path)["latents"]
            if latents.dtype != np.float32 or latents.ndim < 2 or not np.isfinite(latents).all():
                raise Damaged(f"{path} holds no finite latents, a row a step")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as reason:
            raise UserError(f"{path} is damaged ({reason}): delete it and run again") from None
        except Damaged as reason:
            raise UserError(f"{reason}: delete it and run again") from None
        return latents

    def sample(self, record: Record) -> Path:
        """The sample's file.

        Raises:
            UserError: there is none.
        """
        path = sample_file(self.folder, record)
        if not path.exists():
            raise UserError(f"no sample {path}: run the experiment again, it makes only what is missing")
        return path

    def picture(self, record: Record) -> Pixels:
        """The sample's pixels: (H, W, 3) uint8, of a clip (F, H, W, 3).

        Raises:
            UserError: the file is missing, damaged, or coded with loss, so that it cannot be compared.
        """
        path = self.sample(record)
        try:
            pixels = media.read(path)
        except media.Unreadable as reason:
            raise UserError(f"{path} {reason}: delete it and run again") from None
        if record.sha256 not in (None, _sha256(path)):
            raise UserError(f"{path} has changed since it was made: delete it and run again")
        return pixels


def _sha256(path: Path) -> str:
    try:
        check_file(path, reading.TABLE)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"no {path}: run the experiment again") from None


class Decoded:
    """An experiment's pixels. Each sample is decoded only once, as long as the pixels fit into memory.

    The first samples stay in memory. Each evaluation reads all samples in order, so that replacing the oldest would
    always remove the sample that is needed next.
    """

    def __init__(self, experiment: Experiment, budget: int | None = None):
        """
        Args:
            budget: the most bytes to hold; by default a quarter of the free memory.
        """
        self.experiment = experiment
        self.room = psutil.virtual_memory().available // 4 if budget is None else budget
        self._pixels: dict[str, Pixels] = {}

    def picture(self, record: Record) -> Pixels:
        """`Experiment.picture`, from memory if it was read before. Threads may call it; then it may hold a few pictures
        more than the budget."""
        if record.sample in self._pixels:
            return self._pixels[record.sample]
        pixels = self.experiment.picture(record)
        if pixels.nbytes <= self.room:
            self.room -= pixels.nbytes
            self._pixels[record.sample] = pixels
        return pixels


def find_experiments(folders: Sequence[Path]) -> list[Path]:
    """The experiment directories among the folders, and those in the other folders. A run without samples is left out
    with a warning, so that the table of the others can be made.

    Raises:
        UserError: a folder is and holds no experiment directory, or no run has made a sample.
    """
    runs = [run for folder in folders for run in runs_in(folder)]
    with_samples = [run for run in runs if has_samples(run)]
    if not with_samples:
        raise UserError(f"no sample in {', '.join(map(str, runs))}: run the experiment first")
    for run in runs:
        if run not in with_samples:
            log.warning("left out: %s has no sample", run)
    return with_samples


def runs_in(folder: Path) -> list[Path]:
    """The folder, if it is an experiment directory, or those in it."""
    candidates = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    runs = [path for path in candidates if (path / "config.yaml").is_file() or (path / "records.jsonl").is_file()]
    if not runs:
        raise UserError(
            f"no experiment directory in {folder}: name a folder that a run has made, or its parent; for samples that "
            "other code made there is src/score.py"
        )
    return [folder] if folder in runs else runs


def has_samples(folder: Path) -> bool:
    """Whether a run has made a sample there."""
    records = folder / "records.jsonl"
    return records.is_file() and records.stat().st_size > 0


def read_experiment(folder: Path) -> Experiment:
    """Open an experiment directory.

    Raises:
        UserError: the records are missing, or this version cannot read config.yaml.
    """
    records = read_records(folder)
    return Experiment(Path(folder), read_config(Path(folder) / "config.yaml"), records)


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a run.

    Raises:
        UserError: the file is missing, or this version cannot read it.
    """
    try:
        text = read_text(path, reading.CONFIG)
    except FileNotFoundError:
        raise UserError(f"no {path}: name a folder that a run has made") from None
    except Damaged as reason:
        raise UserError(f"{reason}: run the experiment again into a fresh folder") from None
    try:
        config = parse_yaml(text)
    except Damaged as reason:
        raise UserError(f"{path} {reason}: run the experiment again into a fresh folder") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no settings: run the experiment again into a fresh folder")
    wrong = [f for key, hint in CONFIG.items() if key in config for f in misfits(config[key], hint, key)]
    model = config.get("model") or {}
    if not wrong:
        wrong = [f for key, hint in MODEL.items() if key in model for f in misfits(model[key], hint, f"model.{key}")]
    if not wrong and model.get("fps") is not None and not 0 < model["fps"] <= 240:
        wrong = [f"model.fps is {model['fps']}"]
    if wrong:
        raise UserError(
            f"{path} is damaged or of another version ({wrong[0]}): run the experiment again into a fresh folder"
        )
    schema = config.get("schema", 1)  # the first had no number
    if schema not in range(1, SCHEMA + 1):
        raise UserError(f"{path} was made by a newer version (schema {schema}): update")
    return config


def check_reference(experiment: Experiment, reference: Experiment) -> None:
    """Refuse a reference that cannot judge the experiment.

    Raises:
        UserError: the reference skips steps, has fewer steps, or was made with other model settings.
    """
    _check_steps(experiment, reference)
    _check_model(experiment, reference)
    if experiment.runtime != reference.runtime and not experiment.is_full:
        raise UserError(
            f"{experiment.folder} was made with runtime {experiment.runtime or 'as it comes'} and {reference.folder} "
            f"with {reference.runtime or 'as it comes'}: make both with the same"
        )
    _check_settings(experiment, reference)


def _check_steps(experiment: Experiment, reference: Experiment) -> None:
    if not reference.is_full:
        r = next(r for r in reference.records if r.nfe != r.num_inference_steps)
        raise UserError(
            f"{reference.folder} skips steps ({r.algo}: {r.nfe} of {r.num_inference_steps} passes) and cannot "
            "be a reference: give reference=<a run of algo=nocache>"
        )
    if experiment.steps > reference.steps:
        raise UserError(
            f"{experiment.folder} takes {experiment.steps} steps and its reference {reference.folder} only "
            f"{reference.steps}: make the reference with num_inference_steps={experiment.steps}"
        )


def _check_model(experiment: Experiment, reference: Experiment) -> None:
    models, reference_models = ({record.model for record in e.records} for e in (experiment, reference))
    if reference_models not in (models, {experiment.model.get("teacher")}):
        raise UserError(
            f"{experiment.folder} was made with {', '.join(sorted(models))} and {reference.folder} with "
            f"{', '.join(sorted(reference_models))}: give a reference made with the same model"
        )


def _check_settings(experiment: Experiment, reference: Experiment) -> None:
    taught = {"name", "weights"} if experiment.model.get("teacher", "") == reference.model.get("name") else set()
    keys = (experiment.model.keys() | reference.model.keys()) - DESCRIPTIVE - taught - {"offload"}  # a runtime's
    for key in sorted(keys):
        value, reference_value = experiment.model.get(key), reference.model.get(key)
        unnamed = UNNAMED.get(key)
        if experiment.model.get(key, unnamed) != reference.model.get(key, unnamed):
            raise UserError(
                f"{experiment.folder} has model.{key}={value} and {reference.folder} has {reference_value}: make both "
                "with the same model settings"
            )


def pairs(experiment: Experiment, reference: Experiment) -> list[tuple[Record, Record]]:
    """Pairs of a sample and its reference, with the same prompt index and seed, sorted by both.

    Raises:
        UserError: there are no pairs, or the prompts of a pair differ.
    """
    keys = sorted(experiment.by_key.keys() & reference.by_key.keys())
    if not keys:
        seeds = [sorted({record.seed for record in e.records}) for e in (experiment, reference)]
        raise UserError(
            f"{experiment.folder} (seeds {seeds[0]}) and {reference.folder} (seeds {seeds[1]}) have no sample "
            "in common: make both with the same prompt_file and seed"
        )
    partners = [(experiment.by_key[key], reference.by_key[key]) for key in keys]
    for sample, target in partners:
        if sample.prompt != target.prompt:
            own, other = _where_they_differ(sample.prompt, target.prompt)
            raise UserError(
                f"prompt {sample.prompt_index} is {own!r} in {experiment.folder} but {other!r} in {reference.folder}: "
                "make both with the same prompt_file"
            )
        if sample.inputs != target.inputs:
            raise UserError(
                f"prompt {sample.prompt_index} has other inputs beside it in {experiment.folder} than in "
                f"{reference.folder}: make both with the same prompt_file"
            )
    return partners


def _where_they_differ(a: str, b: str, width: int = 40) -> tuple[str, str]:
    """The first characters of two texts; if those are equal, the characters round the first difference."""
    at = len(os.path.commonprefix([a, b]))
    start = 0 if at < width else at - width // 2
    before = "..." if start else ""
    return before + a[start : start + width], before + b[start : start + width]
