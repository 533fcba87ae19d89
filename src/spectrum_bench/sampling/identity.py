"""A sample's id: a hash of all names and constants that decide its pixels, and of no import path.

An id must not change when code changes without changing pixels:

- a module moves: only the last name of `_target_` counts;
- a part or a constant is renamed: write the new name and the name in old ids into RENAMED;
- a key is added: write the value with which the pixels are as before into ADDED.

A fix that changes pixels raises `revision` in the YAML of the part, which is in the id.
"""

import hashlib
import inspect
import json
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from spectrum_bench.sampling.settings import DESCRIPTIVE, SCHEMA, ModelSettings, Part, RunSettings

# "<part>", "<part>.<constant>" or "model.<key>" of today -> the name that ids were made with.
RENAMED: dict[str, str] = {}
# "<part>.<constant>" or "model.<key>" -> the value at which it is left out of ids.
ADDED: dict[str, object] = {
    "dicache.beyond": True,
    "magcache.down": False,
    "CacheDiT.config": "DBCacheConfig",
    "CacheDiT.policy": None,
    "FittedSolver.solver": "hindcast",
    "model.vae_slicing": False,
    "model.offload": "none",
    "model.pipeline": None,
    "model.quantization": "none",
    "Attentions.cross": 1,
}

# The constants of a part that the command line calls otherwise: algo.w=0.5, and not blend.
KEYS = {
    "spectrum": {"degree": "m", "ridge": "lam", "blend": "w"},
    "adaptive_window": {"window": "window_size", "flex": "flex_window", "warmup": "warmup_steps"},
}

Identity = dict[str, Any]  # JSON: what `identity` returns


def identity(settings: RunSettings) -> Identity:
    """All settings that decide the pixels of a run's samples, except prompt and seed.

    `settings.model.weights` must be known.
    """
    named: Identity = {"schema": SCHEMA, "model": _model(settings.model)}
    named |= {key: part and _part(part) for key, part in settings.method.parts.items()}
    named |= {"num_inference_steps": settings.num_inference_steps, "runtime": asdict(settings.runtime)}
    return {key: canonical(value) for key, value in named.items()}


def sample_id(who: Identity, prompt: str, seed: int, repetition: int) -> str:
    """16 hex digits.

    Args:
        repetition: how many times the prompt came before in the prompt file.
    """
    key = json.dumps([who, prompt, seed, repetition], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def canonical(value: Any) -> Any:
    """The value in JSON's types, with one form for each number, so that 1 and 1.0 give one id."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): canonical(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [canonical(each) for each in value]
    return value


def labels(settings: RunSettings) -> dict[str, str]:
    """The names of the method and its parts, for records and tables: name(argument=value, ...), without lists and
    defaults."""

    def label(part: Part | None) -> str:
        if part is None:
            return "-"
        default = defaults(part)
        plain = {k: v for k, v in part.constants.items() if isinstance(v, (int, float, str))}
        plain |= {k: v.name for k, v in part.constants.items() if isinstance(v, Part) and k == "site"}
        arguments = ", ".join(f"{k}={v}" for k, v in plain.items() if v != default.get(k, k))
        return f"{part.name}({arguments})" if arguments else part.name

    return {"algo": settings.method.name} | {key: label(part) for key, part in settings.method.parts.items()}


def headline(model: str, words: Mapping[str, str]) -> str:
    """The model's name and the labels in one line for a person."""
    schedule, forecaster = called(words["schedule"]), called(words["forecaster"])
    return f"{model}: {words['algo']} = {schedule} x {forecaster} x {words['site']}"


def called(label: str) -> str:
    """A label with the names that constants have on the command line; records keep those of the code."""
    keys = KEYS.get(label.partition("(")[0], {})
    return re.sub(r"\b(\w+)=", lambda name: f"{keys.get(name[1], name[1])}=", label)


def defaults(part: Part) -> dict[str, Any]:
    """The default values of the constants that a part's function or class takes; `starts` is none, which the run gives
    to a schedule."""
    parameters = inspect.signature(pkgutil.resolve_name(part.target)).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty and name != "starts"}


def _part(part: Part) -> Identity:
    name = RENAMED.get(part.name, part.name)
    values = defaults(part) | dict(part.constants)
    constants = {key: _part(value) if isinstance(value, Part) else value for key, value in values.items()}
    head: Identity = {"name": name} | ({"revision": part.revision} if part.revision != 1 else {})
    return head | _named(part.name, constants)


def _model(model: ModelSettings) -> Identity:
    values = {key: value for key, value in asdict(model).items() if key not in (*DESCRIPTIVE, "extra")}
    return _named("model", values | dict(model.extra))


def _named(owner: str, values: Mapping[str, Any]) -> Identity:
    """The values under the names in old ids, without added keys at their neutral values."""
    return {
        RENAMED.get(f"{owner}.{key}", key): value
        for key, value in values.items()
        if not (f"{owner}.{key}" in ADDED and ADDED[f"{owner}.{key}"] == value)
    }
