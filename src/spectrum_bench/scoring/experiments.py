"""Experiment directories as evaluation and report see them: configuration, records, pictures, pairs."""

import hashlib
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import media
from spectrum_bench.sampling.records import Record, read_records
from spectrum_bench.sampling.settings import DESCRIPTIVE


@dataclass(frozen=True)
class Experiment:
    """A finished run: its resolved configuration and its records."""

    folder: Path
    config: dict
    records: list[Record]

    @property
    def name(self) -> str:
        return str(self.config.get("exp_name") or self.folder.resolve().name)

    @property
    def model(self) -> dict:
        return self.config.get("model") or {}

    @property
    def runtime(self) -> dict:
        """What is not as a run has it by itself: batch_size, compile, attention."""
        found = self.config.get("runtime") or {}
        return {k: v for k, v in found.items() if v != {"batch_size": 1, "compile": False}.get(k)}

    @property
    def steps(self) -> int:
        return max(r.num_inference_steps for r in self.records)

    @cached_property
    def by_key(self) -> dict[tuple[int, int], Record]:
        """(prompt index, seed) -> record."""
        return {(r.prompt_index, r.seed): r for r in self.records}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of records.jsonl. Records hold times, so it tells a run even from its own repetition."""
        return hashlib.sha256((self.folder / "records.jsonl").read_bytes()).hexdigest()

    @property
    def is_full(self) -> bool:
        """Whether every step of every sample went through the whole network."""
        return all(r.nfe == r.num_inference_steps for r in self.records)

    def latents(self, record: Record) -> np.ndarray | None:
        """(T, ...) float32, what the scheduler made of each step; None if they were not kept."""
        path = self.folder / "latents" / f"{record.id}.safetensors"
        return load_file(path)["latents"] if path.is_file() else None

    def picture(self, record: Record) -> np.ndarray:
        """The sample's pixels: (H, W, 3) uint8, of a clip (F, H, W, 3).

        Raises:
            UserError: no such file, damaged, or coded with loss, so that it cannot be compared.
        """
        path = self.folder / record.sample
        try:
            pixels = media.read(path)
        except FileNotFoundError:
            raise UserError(f"no sample {path}: run the experiment again, it makes only what is missing") from None
        except ValueError as error:
            raise UserError(f"{path} {error}: delete it and run again") from None
        except (OSError, SyntaxError, RuntimeError) as error:  # Pillow's and ffmpeg's answers to damaged files
            reason = str(error).split("\n")[0]
            raise UserError(f"{path} is damaged ({reason}): delete it and run again") from None
        if record.sha256 not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
            raise UserError(f"{path} has changed since it was made: delete it and run again")
        return pixels


def find_experiments(folders: list[Path]) -> list[Path]:
    """The folders that are experiment directories, and the experiment directories in those that are not. A run that
    has made no sample is left out, with a line that says so: its row is missing, the others' table is not.

    Raises:
        UserError: a folder is neither, or no run has made a sample.
    """
    found = []
    for folder in folders:
        each = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
        runs = [f for f in each if (f / "config.yaml").is_file() or (f / "records.jsonl").is_file()]
        if not runs:
            raise UserError(f"no experiment directory in {folder}: name a folder that a run has made, or its parent")
        found += [folder] if folder in runs else runs
    made = [folder for folder in found if has_samples(folder)]
    if not made:
        raise UserError(f"no sample in {', '.join(map(str, found))}: run the experiment first")
    for folder in found:
        if folder not in made:
            print(f"left out: {folder} has no sample", file=sys.stderr)
    return made


def has_samples(folder: Path) -> bool:
    records = folder / "records.jsonl"
    return records.is_file() and records.stat().st_size > 0


def read_experiment(folder: Path) -> Experiment:
    """Open an experiment directory.

    Raises:
        UserError: no records, or no readable config.yaml.
    """
    records = read_records(folder)
    path = Path(folder) / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {path}: name a folder that a run has made") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{path} is not YAML: run the experiment again into a fresh folder") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no settings: run the experiment again into a fresh folder")
    return Experiment(Path(folder), config, records)


def check_reference(experiment: Experiment, reference: Experiment) -> None:
    """Refuse a reference that cannot judge the experiment.

    Raises:
        UserError: the reference skips steps, has fewer steps, or was made with other model settings.
    """
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
    mine, theirs = ({r.model for r in e.records} for e in (experiment, reference))
    if mine != theirs:
        raise UserError(
            f"{experiment.folder} was made with {', '.join(sorted(mine))} and {reference.folder} with "
            f"{', '.join(sorted(theirs))}: give a reference made with the same model"
        )
    if experiment.runtime != reference.runtime and not experiment.is_full:
        raise UserError(
            f"{experiment.folder} was made with runtime {experiment.runtime or 'as it comes'} and {reference.folder} "
            f"with {reference.runtime or 'as it comes'}: make both with the same"
        )
    keys = (experiment.model.keys() | reference.model.keys()) - DESCRIPTIVE
    other = sorted(k for k in keys if experiment.model.get(k) != reference.model.get(k))
    if other:
        key = other[0]
        raise UserError(
            f"{experiment.folder} has model.{key}={experiment.model.get(key)} and {reference.folder} has "
            f"{reference.model.get(key)}: make both with the same model settings"
        )


def pairs(experiment: Experiment, reference: Experiment) -> list[tuple[Record, Record]]:
    """Samples of both that have prompt index and seed in common, in that order.

    Raises:
        UserError: there are none, or a prompt differs.
    """
    keys = sorted(experiment.by_key.keys() & reference.by_key.keys())
    if not keys:
        seeds = [sorted({r.seed for r in e.records}) for e in (experiment, reference)]
        raise UserError(
            f"{experiment.folder} (seeds {seeds[0]}) and {reference.folder} (seeds {seeds[1]}) have no sample "
            "in common: make both with the same prompt_file and seed"
        )
    found = [(experiment.by_key[k], reference.by_key[k]) for k in keys]
    for mine, theirs in found:
        if mine.prompt != theirs.prompt:
            raise UserError(
                f"prompt {mine.prompt_index} is {mine.prompt[:40]!r} in {experiment.folder} but "
                f"{theirs.prompt[:40]!r} in {reference.folder}: make both with the same prompt_file"
            )
    return found
