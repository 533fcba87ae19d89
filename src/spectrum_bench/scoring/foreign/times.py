"""What the user tells of samples that other code made: times, steps and passes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import reading
from spectrum_bench.sampling.limits import MOST_STEPS
from spectrum_bench.sampling.reading import Damaged, parse_json, read_text


@dataclass(frozen=True)
class Told:
    """What the user says of a folder, beside its files.

    Attributes:
        steps: of each sample; 0 for not told.
        passes, seconds: one number for all samples, or one for each in the order of the prompts; empty for not told.
        device: on which they were measured.
    """

    steps: int = 0
    passes: Sequence[int] = ()
    seconds: Sequence[float] = ()
    device: str = "not told"


def read_times(path: Path) -> dict[str, Told]:
    """What a JSON file tells of folders: {"fora": {"steps": 50, "passes": 14, "seconds": [3.1, ...], "device": ...}},
    or the seconds alone in the place of the object.

    Raises:
        UserError: the file is missing or not of this form.
    """
    try:
        given = parse_json(read_text(path, reading.CONFIG * 64))
    except FileNotFoundError:
        raise UserError(f"there is no times={path}") from None
    except Damaged as reason:
        raise UserError(f"times={path}: {reason}") from None
    if not isinstance(given, dict):
        raise UserError(f'times={path}: write {{"<folder>": {{"seconds": [...], "steps": 50, "passes": 14}}}}')
    return {name: _told(path, name, value) for name, value in given.items()}


def _told(path: Path, name: str, value: Any) -> Told:
    if not isinstance(value, dict):
        value = {"seconds": value}
    if unknown := value.keys() - Told.__annotations__.keys():
        raise UserError(f"times={path}: {name}: no key {min(unknown)}: there are {', '.join(Told.__annotations__)}")
    passes, seconds = (_listed(value.get(key, [])) for key in ("passes", "seconds"))
    told = Told(value.get("steps", 0), passes, seconds, value.get("device", "not told"))
    if not all(type(n) in (int, float) and math.isfinite(n) and n >= 0 for n in seconds):
        raise UserError(f"times={path}: {name}: seconds are numbers")
    if type(told.device) is not str or len(told.device) > 200:
        raise UserError(f"times={path}: {name}: device is a short text")
    if type(told.steps) is not int or not 0 <= told.steps <= MOST_STEPS:
        raise UserError(f"times={path}: {name}: steps is a whole number")
    if not all(type(n) is int and 0 < n <= told.steps for n in passes):
        raise UserError(f"times={path}: {name}: passes are whole numbers up to steps")
    return told


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)
