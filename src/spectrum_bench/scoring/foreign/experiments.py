"""Experiment directories made of samples that other code made, so that everything here scores and shows them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import media
from spectrum_bench.sampling.prompts import Prompt
from spectrum_bench.sampling.records import Latency, Record, write_atomically
from spectrum_bench.sampling.settings import SCHEMA
from spectrum_bench.scoring.experiments import Experiment, read_config
from spectrum_bench.scoring.foreign.files import Sample, coding_loss, read
from spectrum_bench.scoring.foreign.pairing import Key
from spectrum_bench.scoring.foreign.times import Told

MODEL = "elsewhere"  # the model's name in records: nobody told it
CODED = 8  # pictures whose coding is measured
PAIRED = ("psnr", "ssim", "lpips")
WITH_PROMPTS = {"pictures": ("imagereward", "clip"), "clips": ("vbench",)}


@dataclass(frozen=True)
class Folder:
    """A folder of samples, and the key of each."""

    path: Path
    name: str  # of the row
    keys: Mapping[Path, Key]


@dataclass(frozen=True)
class Brought:
    """An experiment directory made of other code's files, and what to know of their coding."""

    experiment: Experiment
    notes: list[str]


def bring_in(
    folder: Folder,
    out: Path,
    prompts: Sequence[Prompt],
    ranks: Mapping[str, int],
    told: Told,
    reference: Experiment | None = None,
) -> Brought:
    """Copy a folder's samples into the experiment directory `out`, decoded and coded without loss.

    Args:
        ranks: the place of each name, where names alone tell which files are a pair.
        reference: to measure what the samples' own coding costs.

    Raises:
        UserError: a file cannot be decoded, or the number of the times is not that of the samples.
    """
    _check_place(out)
    places = {path: (ranks.get(key.name, key.index), key.sample) for path, key in folder.keys.items()}
    for what, values in {"passes": told.passes, "seconds": told.seconds}.items():
        if len(values) not in (0, 1, len(places)):
            raise UserError(f"times of {folder.name}: {len(values)} {what} for {len(places)} samples")
    records: list[Record] = []
    lossy: list[str] = []
    losses: list[float] = []
    fps = None
    for path in sorted(places, key=places.__getitem__):
        sample, (index, _) = read(path), places[path]
        fps = sample.fps
        prompt = prompts[index] if prompts else Prompt(folder.keys[path].name or f"{index}")
        records.append(_record(folder, out, sample, places[path], prompt, told, len(records)))
        if not sample.lossless:
            lossy.append(path.suffix[1:].upper())
            target = reference.by_key.get(places[path]) if reference and sample.tables and len(losses) < CODED else None
            if reference and target:
                losses.append(coding_loss(sample, reference.picture(target)))
    config = _config(folder, fps, bool(prompts))
    lines = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    write_atomically(out / "config.yaml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False).encode())
    write_atomically(out / "records.jsonl", lines.encode())
    _remove_others(out, records)
    return Brought(Experiment(out, config, records), _coding(folder.name, len(records), lossy, losses))


def _check_place(out: Path) -> None:
    """Refuse a folder in which a run stands."""
    if (out / "records.jsonl").exists() and "made_from" not in read_config(out / "config.yaml"):
        raise UserError(f"{out} holds a run: choose another out=<folder>")


def _remove_others(out: Path, records: Sequence[Record]) -> None:
    """Remove the samples of an earlier command."""
    ids = {record.id for record in records}
    for path in (out / "samples").iterdir():
        if path.name.split(".")[0] not in ids:
            path.unlink()


def _coding(name: str, count: int, lossy: Sequence[str], losses: Sequence[float]) -> list[str]:
    """What to know of files that are coded with loss."""
    if not lossy:
        return []
    kinds = ", ".join(sorted(set(lossy)))
    cost = ", which bounds PSNR and SSIM"
    if losses:
        cost = f": the reference coded like them is {np.mean(losses):.1f} dB from itself, mean of {len(losses)}"
    return [f"{name}: {len(lossy)} of {count} files are coded with loss ({kinds}){cost}."]


def annotate(reference: Experiment, notes: Sequence[str]) -> Experiment:
    """The reference with notes for the tables that are made with it."""
    config = reference.config | {"model": reference.model | {"note": " ".join(notes)}}
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    write_atomically(reference.folder / "config.yaml", text.encode())
    return Experiment(reference.folder, config, reference.records)


def _record(
    folder: Folder, out: Path, sample: Sample, place: tuple[int, int], prompt: Prompt, told: Told, number: int
) -> Record:
    files = media.encode(sample.pixels, sample.fps)
    digests = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in files.items()}
    suffix = next(iter(files))
    id_ = hashlib.sha256(f"{folder.name} {place} {digests[suffix]}".encode()).hexdigest()[:16]
    for each, data in files.items():
        if not (out / f"samples/{id_}{each}").is_file():
            write_atomically(out / f"samples/{id_}{each}", data)
    latency: Latency = {"total": told.seconds[number % len(told.seconds)]} if told.seconds else {}
    return Record(
        id=id_,
        prompt_index=place[0],
        prompt=prompt.text,
        target_caption=prompt.target_caption,
        seed=place[1],
        sample=f"samples/{id_}{suffix}",
        model=MODEL,
        algo=folder.name,
        schedule="-",
        forecaster="-",
        site="-",
        num_inference_steps=told.steps,
        computed_steps=[],
        nfe=told.passes[number % len(told.passes)] if told.passes else 0,
        latency=latency,
        peak_memory_bytes=None,
        cache_bytes=0,
        device=told.device,
        sha256=digests[suffix],
        sample_bytes=len(files[suffix]),
        elsewhere=True,
        schema=SCHEMA,
    )


def _config(folder: Folder, fps: float | None, with_prompts: bool) -> dict[str, Any]:
    metrics = [*PAIRED, *(WITH_PROMPTS["clips" if fps else "pictures"] if with_prompts else ())]
    model = {"name": MODEL, "metrics": metrics} | ({"fps": fps} if fps else {})
    return {"schema": SCHEMA, "exp_name": folder.name, "made_from": folder.path.name, "model": model}
