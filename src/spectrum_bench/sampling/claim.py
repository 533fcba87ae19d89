"""An experiment directory belongs to one configuration, which `config.yaml` holds."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import reading
from spectrum_bench.sampling.identity import Identity, canonical, labels
from spectrum_bench.sampling.reading import Damaged, check, dump_yaml, parse_yaml, read_text
from spectrum_bench.sampling.records import only_run, write_atomically
from spectrum_bench.sampling.settings import SCHEMA, RunSettings


def claim(folder: Path, settings: RunSettings, who: Identity, prompts_sha256: str) -> None:
    """Write `config.yaml`, or check that the existing one belongs to the same experiment.

    The folder of an older version is renamed, with a warning, because its samples have other ids.

    Raises:
        UserError: the folder belongs to another experiment, or cannot be written.
    """
    path = folder / "config.yaml"
    same = canonical(who | {"seed": settings.seed, "prompts_sha256": prompts_sha256})
    if path.exists():
        existing = _read(path)
        if existing.get("schema", 1) == SCHEMA:
            _compare(folder, same, existing.get("identity") or {})
        else:
            _set_aside(folder, existing.get("schema", 1))
    check_writable(folder)
    if path.exists():
        return
    config = _plain(settings, prompts_sha256) | {"labels": labels(settings), "identity": same}
    try:
        write_atomically(path, dump_yaml(config).encode())
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another output_base_path") from None


def stored_config(folder: Path, settings: RunSettings, prompts_sha256: str) -> dict[str, Any] | None:
    """The existing `config.yaml`, with `labels` and `identity`, if all of its settings are these; else None.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    existing = _read(path)
    own = {key: existing.pop(key, None) for key in ("labels", "identity")}
    same = existing == parse_yaml(dump_yaml(_plain(settings, prompts_sha256))) and None not in own.values()
    return existing | own if same else None


def _plain(settings: RunSettings, prompts_sha256: str) -> dict[str, Any]:
    config = {"schema": SCHEMA} | settings.to_config() | {"prompts_sha256": prompts_sha256}
    config["model"] |= {"weights": settings.model.weights}
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = parse_yaml(read_text(path, reading.CONFIG))
        check(dict[str, Any], config)
        check(int, config.get("schema", 1))
        check(dict[str, Any], config.get("identity") or {})
        check(dict[str, str], config.get("labels") or {})
    except Damaged as reason:
        raise UserError(f"{path} is damaged: choose another exp_name, or remove that folder ({reason})") from None
    return config


def _compare(folder: Path, new: Mapping[str, Any], existing: Mapping[str, Any]) -> None:
    keys = [key for key in sorted(new.keys() | existing.keys()) if new.get(key) != existing.get(key)]
    if keys:
        raise UserError(
            f"{folder} was made with another configuration ({', '.join(keys)} differ): "
            "choose another exp_name, or remove that folder; for a sweep one that tells its runs apart, e.g. "
            "'exp_name=${model.name}_${algo.name}_${seed}'"
        )


def _set_aside(folder: Path, schema: int) -> None:
    if schema > SCHEMA:
        raise UserError(f"{folder} was made by a newer version (schema {schema}): choose another exp_name, or update")
    with only_run(folder):
        place = folder.with_name(f"{folder.name}.schema{schema}")
        if place.exists():
            raise UserError(f"{folder} was made by an older version, and {place} is there already: remove one of them")
        folder.rename(place)
    print(
        f"{folder} starts anew: an older version made it (schema {schema}), and its samples have other ids; "
        f"they are kept in {place}",
        file=sys.stderr,
    )


def check_writable(folder: Path) -> None:
    """Refuse a folder whose files cannot be replaced.

    Raises:
        UserError: it is such a folder.
    """
    locked = [p for p in (folder, folder / "samples", folder / "records") if p.exists() and not os.access(p, os.W_OK)]
    if locked:
        raise UserError(f"cannot write to {locked[0]}: change its permissions, or choose another exp_name")
