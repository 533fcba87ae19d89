"""The names that download.py takes: models, lists of prompts and metrics whose weights can be fetched."""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants, try_to_load_from_cache

from spectrum_bench.errors import UserError
from spectrum_bench.paths import MODELS, PROMPTS, ROOT, from_home, locate

PROMPT_LISTS = ROOT / "configs" / "downloads.yaml"


def places() -> dict[str, str]:
    """The values of {prompts}, {hub}, {torch} and {vbench} in entries."""
    return {
        "prompts": str(PROMPTS),
        "hub": constants.ENDPOINT,
        "torch": os.environ.get("TORCH_HOME") or "~/.cache/torch",  # torch itself would read XDG_CACHE_HOME too
        "vbench": os.environ.get("VBENCH_CACHE_DIR") or "~/.cache/vbench",
    }


def writable(path: Path) -> Path:
    """The path, if it is no unknown home folder.

    Raises:
        UserError: ~ stands for nothing here.
    """
    if path.parts[:1] == ("~",):
        raise UserError(f"HOME is not set, so there is no place for {path}: HOME=/a/folder, and the same command again")
    return path


@dataclass(frozen=True)
class WebEntry:
    """A file at a URL, and the folder in which its reader expects it."""

    url: str
    to: str
    size: int  # bytes
    sha256: str

    @property
    def source(self) -> str:
        return self.url.format(**places())

    @property
    def path(self) -> Path:
        return from_home(self.to.format(**places())) / self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class HubEntry:
    """A file of a Hugging Face repository. The hub's client keeps it in its cache, under the commit that it is of.

    Attributes:
        revision: the commit to take it from; None: the newest one.
        sha256: of the file, if it is known.
    """

    repo: str
    file: str
    revision: str | None = None
    sha256: str | None = None

    @property
    def path(self) -> Path:
        """The file in the cache; if it is missing, a path at which there is no file."""
        # this looks it up and never fetches it
        cached = try_to_load_from_cache(self.repo, self.file, revision=self.revision)
        folder = Path(constants.HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}"
        return Path(cached) if isinstance(cached, str) else folder / self.file

    @property
    def commit(self) -> str | None:
        """The commit of the repository that the file in the cache is of; None without a file."""
        return self.path.relative_to(constants.HF_HUB_CACHE).parts[2] if self.path.is_file() else None


Entry = WebEntry | HubEntry


def entry(fields: Mapping[str, Any]) -> Entry:
    """A HubEntry or a WebEntry, depending on the keys."""
    return HubEntry(**fields) if "repo" in fields else WebEntry(**fields)


@dataclass(frozen=True)
class Catalogue:
    """Everything that can be fetched, by its name on the command line."""

    model: dict[str, dict[str, Any]]  # the settings in configs/model
    prompts: dict[str, WebEntry]
    metrics: dict[str, tuple[Entry, ...]]
    together: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # one more name -> names of metrics

    def names(self, key: str) -> list[str]:
        return list(getattr(self, key))

    def check(self, key: str, name: str) -> None:
        """Refuse an unknown name.

        Raises:
            UserError: there is no such name.
        """
        names = self.names(key)
        if name in names:
            return
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        if key == "model" and name and (MODELS / f"{name}.yaml").is_file():
            hint = " to fetch: its weights are in this repository"
        raise UserError(f"there is no {key}={name}{hint}; choose of {', '.join([*names, 'all'])}")


KEYS = ("model", "prompts", "metrics")


def read_catalogue(
    metrics: dict[str, tuple[Entry, ...]], together: Mapping[str, tuple[str, ...]] | None = None
) -> Catalogue:
    """The catalogue of this checkout.

    Args:
        metrics: metric -> the weights that it declares.
        together: one more name that the command line takes -> the metrics that it stands for.
    """
    lists = yaml.safe_load(PROMPT_LISTS.read_text(encoding="utf-8"))["prompts"]
    prompts = {name: WebEntry(to="{prompts}", **fields) for name, fields in lists.items()}
    return Catalogue(models(), prompts, metrics, together or {})


def models() -> dict[str, dict[str, Any]]:
    """The settings of the models whose weights are not in this repository."""
    settings = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(MODELS.glob("*.yaml"))}
    return {name: model for name, model in settings.items() if "repo" in model and not locate(model["repo"]).is_dir()}


def parse(argv: list[str], catalogue: Catalogue) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of key and name from the command line, each once, and whether it is a dry run.

    Raises:
        UserError: an option, a key or a name does not exist.
    """
    words = [word for word in argv if word != "--dry-run"]
    wanted = [(key, name) for key, value in map(_split, words) for name in _names(key, value, catalogue)]
    if not wanted:
        raise UserError("nothing to fetch: name a model=, prompts= or metrics= (see --help)")
    return list(dict.fromkeys(wanted)), "--dry-run" in argv


def _split(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    if key not in KEYS:
        raise UserError(f"cannot read {word}: there is model=, prompts=, metrics= and --dry-run (see --help)")
    return key, value


def _names(key: str, value: str, catalogue: Catalogue) -> Iterable[str]:
    names = catalogue.names(key) if value == "all" else value.split(",")
    for name in names:
        if key == "metrics" and name in catalogue.together:
            yield from catalogue.together[name]
        else:
            catalogue.check(key, name)
            yield name
