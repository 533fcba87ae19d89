"""Metrics whose packages conflict with today's transformers: each is one script in an environment of its own.

A script reads a manifest with one JSON line {"id", "path", "prompt"} a sample. When a sample is done, the script
appends one line {"id", ...scores} or {"id", "error"} to a results file. It imports nothing of this package. The results
stay in <experiment>/scores and are not computed again; an id is a hash of the sample's bytes and its prompt.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.paths import from_home, with_tilde
from spectrum_bench.sampling.catalogue import places, writable
from spectrum_bench.scoring.metrics.isolated import header

CACHE = from_home("~/.cache/spectrum_bench/environments")

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# Environments


def environment(name: str) -> Path:
    """The Python of an environment. The environment is made on first use, and when the packages of its script change.

    Raises:
        MetricUnavailable: pip fails.
        UserError: nobody knows the home folder.
    """
    folder = writable(_folder(name))
    python = folder / "bin" / "python"
    if is_made(name):
        return python
    log.warning("%s: making its environment %s (once; some gigabytes)", name, folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{package}\n" for package in header.read(name).dependencies))
    _step(name, sys.executable, "-m", "venv", folder)
    _step(name, python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements)
    (folder / "complete").touch()
    return python


def is_made(name: str) -> bool:
    """Whether the environment exists."""
    return (_folder(name) / "complete").exists()


def _folder(name: str) -> Path:
    """The folder of an environment with these packages. Scripts with the same packages share the one that was made
    first."""
    packages = "\n".join(header.read(name).dependencies)
    digest = hashlib.sha256(packages.encode()).hexdigest()[:12]
    made = sorted(path.parent for path in CACHE.glob(f"*-{digest}/complete"))
    return made[0] if made else CACHE / f"{name}-{digest}"


def _step(name: str, *command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        reason, again = _last_line(done.stderr), " ".join(map(str, command))
        raise MetricUnavailable(name, f"its environment could not be made ({reason})", again)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def score(
    name: str,
    columns: Sequence[str],
    arguments: Sequence[str | Path],
    items: Sequence[tuple[Path, str]],
    store: str | None = None,
) -> list[dict[str, float]]:
    """Scores of (path, prompt) samples by score_<name>.py. If the script fails on a sample, its scores are nan and the
    log says why.

    Args:
        columns: the scores that the script writes.
        arguments: further arguments of the script, such as the paths of its weights.
        store: the name of the file that keeps the scores, where one script has several kinds; None: the script's.

    Raises:
        MetricUnavailable: the environment cannot be made, or the whole script fails.
    """
    lines = results(name, arguments, items, store)
    return [{column: float(line.get(column, "nan")) for column in columns} for line in lines]


def results(
    name: str,
    arguments: Sequence[str | Path],
    items: Sequence[tuple[Path, str]],
    store: str | None = None,
    program: Sequence[str | Path] = (),
) -> list[dict[str, Any]]:
    """The lines that score_<name>.py writes of samples, or has written earlier; arguments and errors as of `score`.

    Args:
        program: what runs in the place of the script in its environment.
    """
    keys = [hashlib.sha256(path.read_bytes() + prompt.encode()).hexdigest()[:32] for path, prompt in items]
    stores = [path.parent.parent / "scores" / f"{store or name}.jsonl" for path, _ in items]
    lines: dict[str, dict[str, Any]] = {}
    for file in set(stores):
        lines |= {line["id"]: line for line in _read(file) if "error" not in line}
    for file in sorted(set(stores)):
        manifest = {
            key: {"id": key, "path": str(path.resolve()), "prompt": prompt}
            for key, (path, prompt), place in zip(keys, items, stores, strict=True)
            if key not in lines and place == file
        }
        if manifest:
            lines |= _run(name, arguments, file, manifest, program)
    return [lines[key] for key in keys]


def _run(
    name: str,
    arguments: Sequence[str | Path],
    store: Path,
    manifest: dict[str, dict[str, str]],
    program: Sequence[str | Path],
) -> dict[str, dict[str, Any]]:
    """Score the samples of a manifest, append the results to `store`, and return them."""
    store.parent.mkdir(parents=True, exist_ok=True)
    if store.is_file() and not store.read_bytes().endswith(b"\n"):  # a kill cut the last line off: end it
        with open(store, "a", encoding="utf-8") as file:
            file.write("\n")
    list_of_samples = store.with_suffix(".manifest")
    list_of_samples.write_text("".join(json.dumps(line) + "\n" for line in manifest.values()), encoding="utf-8")
    command = [*(program or (environment(name), header.script(name))), list_of_samples, store, *arguments]
    torch_home = str(from_home(places()["torch"]))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TORCH_HOME": torch_home}
    done = subprocess.run(
        list(map(str, command)), env=os.environ | offline, capture_output=True, encoding="utf-8", errors="replace"
    )
    list_of_samples.unlink()
    if done.returncode:
        reason = f"its script failed ({_last_line(done.stderr)})"
        raise MetricUnavailable(name, reason, "mend that, and evaluate again")
    last = {line["id"]: line for line in _read(store)}  # a sample's last line counts: earlier ones may be failures
    results = {key: last.get(key, {"error": "its script left it out"}) for key in manifest}
    for key, result in results.items():
        if "error" in result:
            log.warning("%s: %s: %s", name, manifest[key]["path"], result["error"])
    return results


def _read(store: Path) -> list[dict[str, Any]]:
    """The complete lines of a results file. A line that a kill cut off is left out."""
    lines = []
    for line in store.read_text(encoding="utf-8").splitlines() if store.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def weights(name: str, metric: str | None = None) -> list[Path]:
    """The files that a script reads, in the order of its header.

    Args:
        metric: the metric for the error message, if its name differs from the environment's.

    Raises:
        MetricUnavailable: a file is missing.
    """
    paths = [entry.path for entry in header.read(name).weights]
    for path in paths:
        if not path.is_file():
            raise MetricUnavailable(metric or name, f"no {with_tilde(path)}", f"python download.py metrics={name}")
    return paths
