"""The work of download.py: list the files, find those that are missing, check that they fit, fetch them.

A model, a prompt list or a metric becomes a plan: a list of files in a Hugging Face repository or at a URL. A fetched
file is opened here only to compute its checksum and to count prompts.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import HfApi, ModelInfo, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.catalogue import Catalogue, HubEntry, WebEntry, writable
from spectrum_bench.sampling.models import SETTINGS, parts
from spectrum_bench.sampling.remote import File, HubFile, PromptList, WebFile, check_space, explain, human

PICKLES = {".bin", ".pt", ".pth", ".ckpt"}  # loading such a file can run any code
WEIGHTS = re.compile(  # model.safetensors, model.fp16-00001-of-00002.safetensors, model.safetensors.index.fp16.json
    r"[^.]+(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors | [^.]+\.safetensors\.index(?:\.(\w+))?\.json", re.VERBOSE
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """The files that one name of the command line stands for."""

    title: str
    source: str
    files: list[File]
    missing: list[File]
    refused: Exception | None = None  # why nothing of the plan can be fetched: no access to a gated repository


def run(wanted: list[tuple[str, str]], dry_run: bool, catalogue: Catalogue, say: Say, complain: Say) -> list[str]:
    """Fetch the files of several names. If one name fails, go on with the others.

    Args:
        wanted: pairs of key and name.
        dry_run: list every file, and fetch nothing.
        say: takes the lines about each plan.
        complain: takes the reason of each failure.

    Returns:
        The names that failed.

    Raises:
        UserError: the missing files do not fit on the disk. In that case nothing was fetched.
    """
    failed: list[str] = []

    @contextmanager
    def attempt(title: str) -> Iterator[None]:
        try:
            yield
        except (UserError, HTTPError, HFValidationError, JSONDecodeError, OSError) as error:
            complain(f"error: {title}: {' '.join(explain(error).split())}")
            failed.append(title)

    plans: list[Plan] = []
    for key, name in wanted:
        with attempt(f"{key}={name}"):
            plans.append(PLANNERS[key](name, catalogue))
    for line in (line for plan in plans for line in describe(plan, every_file=dry_run)):
        say(line)
    check_space(file for plan in plans if dry_run or not plan.refused for file in plan.missing)
    for plan in plans if not dry_run else ():
        with attempt(plan.title):
            fetch(plan)
            say(f"{plan.title}: all here")
    if failed and len(wanted) > 1:
        complain(f"failed: {', '.join(failed)} (the reasons are above)")
    return failed


def fetch(plan: Plan) -> None:
    """Fetch a plan's files.

    Raises:
        UserError, HTTPError, OSError: a file cannot be fetched.
    """
    if plan.refused:
        raise plan.refused
    for file in plan.files:  # present files too: the cache may hold a new commit's files under an older commit
        file.fetch()


def describe(plan: Plan, every_file: bool) -> Iterator[str]:
    """The size of a plan in one line; with `every_file`, also a line for each file."""
    total, missing = (human(sum(file.size for file in files)) for files in (plan.files, plan.missing))
    count = len(plan.files)
    yield f"{plan.title}{plan.source}: {total} in {count} file{'s' * (count > 1)}, {missing} missing"
    if not every_file:
        return
    for file in plan.files:
        pin = f"  commit {file.commit} sha256 {file.blob}" if isinstance(file, HubFile) and file.is_large else ""
        yield f"  {'missing' if file in plan.missing else 'here':7}  {human(file.size):>7}  {file.name}{pin}"
    if plan.refused:
        yield f"  {explain(plan.refused)}"


# ---------------------------------------------------------------------------------------------------------------------
# Plans


def plan_model(name: str, catalogue: Catalogue) -> Plan:
    """The files of the model's repository that its diffusers pipeline needs.

    Raises:
        UserError: the repository holds no pipeline, or a pipeline without safetensors.
        HTTPError: the hub cannot be reached, or refuses access.
    """
    model = catalogue.model[name]
    repo, revision = model["repo"], model.get("revision")
    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    listed = [file.rfilename for file in info.siblings or ()]
    if "model_index.json" not in listed:
        raise UserError(f"{repo} is no diffusers pipeline (no model_index.json): name one in configs/model/{name}.yaml")
    index, refused = _read_index(repo, info, listed)
    files = hub_files(repo, info, pipeline_files(listed, index, model.get("variant")), newest=revision is None)
    source = f" from {repo}{f' at {revision}' if revision else ''}{' (gated)' if info.gated else ''}"
    return make_plan(f"model={name}", files, source, refused)


def _read_index(repo: str, info: ModelInfo, listed: list[str]) -> tuple[dict[str, Any], Exception | None]:
    """model_index.json, and the error of a repository that refuses it. A dry run must not change the cache, so the file
    is read without it."""
    answer = get_session().get(hf_hub_url(repo, "model_index.json", revision=info.sha), headers=build_hf_headers())
    try:
        hf_raise_for_status(answer)
        index: dict[str, Any] = answer.json()
        return index, None
    except GatedRepoError as error:  # the list of files is public: each folder with settings is a part
        return {path.split("/")[0]: ["part"] for path in listed if re.fullmatch(r"[^/]+/\w*config\.json", path)}, error


def plan_metric(name: str, catalogue: Catalogue) -> Plan:
    """The files that a metric declares as its weights."""
    entries = catalogue.metrics[name]
    files: list[File] = [
        WebFile(e.source, writable(e.path), e.size, e.sha256) for e in entries if isinstance(e, WebEntry)
    ]
    repos: dict[tuple[str, str | None], list[HubEntry]] = {}
    for entry in entries:
        if isinstance(entry, HubEntry):
            repos.setdefault((entry.repo, entry.revision), []).append(entry)
    for (repo, revision), wanted in repos.items():
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        found = hub_files(repo, info, [entry.file for entry in wanted], newest=revision is None)
        for file, entry in zip(found, wanted, strict=True):
            if entry.sha256 not in (None, file.blob):
                raise UserError(f"{repo} has another {file.name} than metrics={name} names: its sha256 is {file.blob}")
        files += found
    return make_plan(f"metrics={name}", files)


def plan_prompts(name: str, catalogue: Catalogue) -> Plan:
    """A list of prompts from configs/downloads.yaml."""
    entry = catalogue.prompts[name]
    path = entry.path.with_name(f"{name}.txt")
    return make_plan(f"prompts={name}", [PromptList(entry.source, path, entry.size, entry.sha256)])


PLANNERS = {"model": plan_model, "prompts": plan_prompts, "metrics": plan_metric}


def make_plan(title: str, files: Iterable[File], source: str = "", refused: Exception | None = None) -> Plan:
    files = list(files)
    return Plan(title, source, files, [file for file in files if not file.is_here()], refused)


def hub_files(repo: str, info: ModelInfo, names: list[str], newest: bool = True) -> list[HubFile]:
    """The named files of a repository, with sizes and commits from the hub's listing `info`.

    Args:
        newest: whether it is the repository's newest commit, which the cache then records.

    Raises:
        UserError: the repository lacks a file.
    """
    listed = {file.rfilename: file for file in info.siblings or ()}
    if absent := [name for name in names if name not in listed]:
        raise UserError(f"{repo} has no {absent[0]}, which is wanted of it")
    files = []
    for name in names:
        file = listed[name]
        blob = file.lfs.sha256 if file.lfs else file.blob_id
        files.append(HubFile(repo, name, file.size or 0, info.sha or "main", blob or "", newest and name == names[-1]))
    return files


def pipeline_files(listed: list[str], index: dict[str, Any], variant: str | None = None) -> list[str]:
    """The files of a repository that a diffusers pipeline needs, model_index.json last.

    Every part that model_index.json names needs its settings and its safetensors: those of `variant` if the part has
    them, else the plain ones.

    Raises:
        UserError: a part is missing, or has no such safetensors.
    """
    wanted = [path for part in parts(index) for path in _part_files(part, listed, variant)]
    return [*wanted, "model_index.json"]


def _part_files(part: str, listed: list[str], variant: str | None) -> list[str]:
    paths = [path for path in map(PurePosixPath, sorted(listed)) if str(path.parent) == part]
    variants: dict[str | None, list[str]] = {}
    for path in paths:
        if match := WEIGHTS.fullmatch(path.name):
            variants.setdefault(match[1] or match[2], []).append(str(path))
    weights = variants.get(variant) or variants.get(None) or []
    if not paths:
        raise UserError(f"its model_index.json names {part}, of which it has no file: name another model.repo")
    if variants and not weights:
        raise UserError(f"its {part} has no plain weights: write variant: {'|'.join(map(str, variants))} into its YAML")
    if not variants and any(path.suffix in PICKLES for path in paths):
        raise UserError(f"its {part} has pickled weights only, which can run code: name a repo with safetensors")
    return [str(path) for path in paths if path.suffix in SETTINGS and ".index." not in path.name] + weights
