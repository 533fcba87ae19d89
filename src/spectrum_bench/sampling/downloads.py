"""What download.py does: list the files, see which are missing and whether they fit, fetch them.

Models, prompt lists and metrics become plans, which are lists of files of two kinds: in a Hugging Face repository, or
at a URL. Nothing that was fetched is opened here but to compute its checksum and to count prompts.
"""

import difflib
import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import yaml
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT, locate
from spectrum_bench.sampling.jobs import read_prompts
from spectrum_bench.sampling.models import SETTINGS, parts
from spectrum_bench.sampling.records import write_atomically

MODELS = ROOT / "configs" / "model"
CATALOGUE = ROOT / "configs" / "downloads.yaml"
PROMPTS = ROOT / "prompts"
PLACES = {
    "hub": ENDPOINT,
    "torch": os.environ.get("TORCH_HOME") or "~/.cache/torch",
    "vbench": os.environ.get("VBENCH_CACHE_DIR") or "~/.cache/vbench",
}

PICKLES = {".bin", ".pt", ".pth", ".ckpt"}  # loading one can run any code
WEIGHTS = re.compile(  # model.safetensors, model.fp16-00001-of-00002.safetensors, model.safetensors.index.fp16.json
    r"[^.]+(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors | [^.]+\.safetensors\.index(?:\.(\w+))?\.json", re.VERBOSE
)


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository; the hub's client keeps it in its own cache."""

    repo: str
    name: str
    size: int
    commit: str
    blob: str  # what the cache calls its content
    last: bool  # of those wanted from this repository

    @property
    def folder(self) -> Path:
        return Path(HF_HUB_CACHE)

    @property
    def left(self) -> int:
        """Bytes still to come. One that was cut off starts again."""
        return self.size

    def is_here(self) -> bool:
        blob = self.folder / f"models--{self.repo.replace('/', '--')}" / "blobs" / self.blob
        return blob.exists() or isinstance(try_to_load_from_cache(self.repo, self.name, revision=self.commit), str)

    def fetch(self) -> None:
        # Only asking for "main" notes in the cache which commit that is; as this comes last, a repository that was
        # cut off is not taken for a whole one. snapshot_download would note all of the repository's files as wanted.
        hf_hub_download(self.repo, self.name, revision=None if self.last else self.commit)


@dataclass(frozen=True)
class WebFile:
    """A file at a URL. It comes into its place when its checksum is right, and never over another file."""

    url: str
    path: Path
    size: int
    sha256: str

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def part(self) -> Path:
        """What has come so far."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def left(self) -> int:
        return self.size - (self.part.stat().st_size if self.part.exists() else 0)

    def is_here(self) -> bool:
        if not self.path.is_file():
            return False
        if checksum(self.path) != self.sha256:
            raise UserError(f"{self.path} was edited or is damaged (its sha256 is another): move it away and try again")
        return True

    def fetch(self) -> None:
        if self.path.is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.part, "ab") as file:  # goes on where an earlier run was cut off
            if file.tell() < self.size:
                plain = {"Accept-Encoding": "identity"}  # a compressed answer could not be resumed
                http_get(self.url, file, resume_size=file.tell(), headers=plain, displayed_filename=self.path.name)
        found = checksum(self.part)
        if found != self.sha256:
            self.part.unlink()
            raise UserError(
                f"{self.url} has sha256 {found[:8]}…, not {self.sha256[:8]}…, and was thrown away: try again; if that "
                "repeats, the file has changed there and configs/downloads.yaml must name another"
            )
        self.part.replace(self.path)


class PromptList(WebFile):
    """A text file with one prompt a line; where it is from is written beside it."""

    def fetch(self) -> None:
        super().fetch()
        origin = {"url": self.url, "sha256": self.sha256, "prompts": len(read_prompts(self.path))}
        write_atomically(self.path.with_suffix(".json"), (json.dumps(origin, indent=2) + "\n").encode())


@dataclass(frozen=True)
class Plan:
    """What one name of the command line stands for."""

    title: str
    source: str
    files: list
    missing: list
    refused: Exception | None = None  # why none of it can be fetched: no access to a gated repository


def choices() -> dict[str, list[str]]:
    """The names that each key takes."""
    return {"model": list(models()), **{key: list(names) for key, names in catalogue().items()}}


def models() -> dict[str, dict]:
    """The configurations of configs/model/ whose weights are not in this repository."""
    found = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(MODELS.glob("*.yaml"))}
    return {name: model for name, model in found.items() if "repo" in model and not locate(model["repo"]).is_dir()}


def catalogue() -> dict[str, dict]:
    return yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))


def parse(argv: list[str]) -> tuple[list[tuple[str, str]], bool]:
    """The command line as pairs of key and name, each once, and whether it is a dry run.

    Raises:
        UserError: an option, key or name that does not exist.
    """
    known, wanted = choices(), []
    for word in argv:
        key, _, value = word.partition("=")
        if word == "--dry-run":
            continue
        if key not in known:
            raise UserError(f"cannot read {word}: there is model=, prompts=, metrics= and --dry-run (see --help)")
        for name in known[key] if value == "all" else value.split(","):
            if name not in known[key]:
                near = difflib.get_close_matches(name, known[key], n=1, cutoff=0.5)
                hint = f" (did you mean {near[0]}?)" if near else ""
                if key == "model" and name and (MODELS / f"{name}.yaml").is_file():
                    hint = " to fetch: its weights are in this repository"
                raise UserError(f"there is no {key}={name}{hint}; choose of {', '.join([*known[key], 'all'])}")
            wanted.append((key, name))
    if not wanted:
        raise UserError("nothing to fetch: name a model=, prompts= or metrics= (see --help)")
    return list(dict.fromkeys(wanted)), "--dry-run" in argv


def run(wanted: list[tuple[str, str]], dry_run: bool) -> list[str]:
    """Fetch what is wanted; where some of it fails, go on with the rest.

    Returns:
        What failed. The reasons were printed.

    Raises:
        UserError: what is missing does not fit on the disk. Nothing was fetched then.
    """
    failed = []

    def attempt(title, step):
        try:
            return step()
        except (UserError, HTTPError, OSError, ValueError) as error:
            print(f"error: {title}: {' '.join(explain(error).split())}", file=sys.stderr)
            failed.append(title)

    planners = {"model": plan_model, "prompts": plan_prompts, "metrics": plan_metric}
    plans = [attempt(f"{key}={name}", partial(planners[key], name)) for key, name in wanted]
    plans = [plan for plan in plans if plan]
    for plan in plans:
        show(plan, every_file=dry_run)
    check_space([file for plan in plans if dry_run or not plan.refused for file in plan.missing])
    for plan in plans if not dry_run else ():
        attempt(plan.title, partial(fetch, plan))
    if failed and len(wanted) > 1:
        print(f"failed: {', '.join(failed)} (the reasons are above)", file=sys.stderr)
    return failed


def fetch(plan: Plan) -> None:
    if plan.refused:
        raise plan.refused
    for file in plan.files:  # those that are here too: a new commit's files may be in the cache under an older one
        file.fetch()
    print(f"{plan.title}: all here")


def plan_model(name: str) -> Plan:
    """What a diffusers pipeline needs of the model's repository.

    Raises:
        UserError: the repository holds no pipeline, or one without safetensors.
        HTTPError: the hub cannot be reached, or refuses.
    """
    model = models()[name]
    repo = model["repo"]
    info = HfApi().model_info(repo, files_metadata=True)
    listed = [file.rfilename for file in info.siblings]
    if "model_index.json" not in listed:
        raise UserError(f"{repo} is no diffusers pipeline (no model_index.json): name one in configs/model/{name}.yaml")
    # Past the cache, which a dry run leaves alone.
    answer = get_session().get(hf_hub_url(repo, "model_index.json", revision=info.sha), headers=build_hf_headers())
    refused = None
    try:
        hf_raise_for_status(answer)
        index = answer.json()
    except GatedRepoError as error:  # which files it has is public all the same: parts are the folders with settings
        index = {path.split("/")[0]: ["part"] for path in listed if re.fullmatch(r"[^/]+/\w*config\.json", path)}
        refused = error
    files = hub_files(repo, info, pipeline_files(listed, index, model.get("variant")))
    return make_plan(f"model={name}", files, f" from {repo}{' (gated)' if info.gated else ''}", refused)


def plan_metric(name: str) -> Plan:
    """The files that a metric reads, by configs/downloads.yaml."""
    files, repos = [], {}
    for entry in catalogue()["metrics"][name]:
        if "repo" in entry:
            repos.setdefault(entry["repo"], []).append(entry["file"])
        else:
            url, folder = (entry[key].format(**PLACES) for key in ("url", "to"))
            path = Path(folder).expanduser() / url.rsplit("/", 1)[1]
            files.append(WebFile(url, path, entry["size"], entry["sha256"]))
    for repo, names in repos.items():
        files += hub_files(repo, HfApi().model_info(repo, files_metadata=True), names)
    return make_plan(f"metrics={name}", files)


def plan_prompts(name: str) -> Plan:
    """A prompt list, by configs/downloads.yaml."""
    entry = catalogue()["prompts"][name]
    file = PromptList(entry["url"].format(**PLACES), PROMPTS / f"{name}.txt", entry["size"], entry["sha256"])
    return make_plan(f"prompts={name}", [file])


def make_plan(title: str, files: list, source: str = "", refused: Exception | None = None) -> Plan:
    return Plan(title, source, files, [file for file in files if not file.is_here()], refused)


def hub_files(repo: str, info, names: list[str]) -> list[HubFile]:
    """The named files of a repository, by the hub's listing `info`."""
    listed = {file.rfilename: file for file in info.siblings}
    if absent := [name for name in names if name not in listed]:
        raise UserError(f"{repo} has no {absent[0]}, which configs/downloads.yaml names")
    blobs = {name: listed[name].lfs.sha256 if listed[name].lfs else listed[name].blob_id for name in names}
    return [HubFile(repo, name, listed[name].size, info.sha, blobs[name], name == names[-1]) for name in names]


def pipeline_files(listed: list[str], index: dict, variant: str | None = None) -> list[str]:
    """Of a repository's files those that a diffusers pipeline needs, model_index.json last.

    For every part that model_index.json names: its settings, and the safetensors of one variant, which is the plain
    one unless the part has those of `variant`.

    Raises:
        UserError: a part is missing, or has no such safetensors.
    """
    wanted = []
    for part in parts(index):
        paths = [path for path in map(PurePosixPath, sorted(listed)) if str(path.parent) == part]
        variants = {}
        for path in paths:
            if match := WEIGHTS.fullmatch(path.name):
                variants.setdefault(match[1] or match[2], []).append(str(path))
        weights = variants.get(variant) or variants.get(None) or []
        if not paths:
            raise UserError(f"its model_index.json names {part}, of which it has no file: name another model.repo")
        if variants and not weights:
            raise UserError(f"its {part} has no plain weights: write variant: {'|'.join(variants)} into its YAML")
        if not variants and any(path.suffix in PICKLES for path in paths):
            raise UserError(f"its {part} has pickled weights only, which can run code: name a repo with safetensors")
        wanted += [str(path) for path in paths if path.suffix in SETTINGS and ".index." not in path.name] + weights
    return [*wanted, "model_index.json"]


def check_space(files: list) -> None:
    """Refuse what does not fit.

    Raises:
        UserError: which disk is too small, and by how much.
    """
    places, needed = {}, Counter()
    for file in files:
        place = next(folder for folder in (file.folder, *file.folder.absolute().parents) if folder.exists())
        disk = place.stat().st_dev
        places.setdefault(disk, place)
        needed[disk] += file.left
    for disk, place in places.items():
        free = shutil.disk_usage(place).free
        if needed[disk] > free:
            raise UserError(
                f"the disk of {place} is too small by {human(needed[disk] - free)} ({human(needed[disk])} to fetch, "
                f"{human(free)} free): make room, name less at once, or set HF_HOME to a folder on a larger disk"
            )


def show(plan: Plan, every_file: bool) -> None:
    """Print how much a plan is; with `every_file`, a line for each too."""
    total, missing = (sum(file.size for file in files) for files in (plan.files, plan.missing))
    count = len(plan.files)
    print(f"{plan.title}{plan.source}: {human(total)} in {count} file{'s' * (count > 1)}, {human(missing)} missing")
    if not every_file:
        return
    for file in plan.files:
        print(f"  {'missing' if file in plan.missing else 'here':7}  {human(file.size):>7}  {file.name}")
    if plan.refused:
        print(f"  {explain(plan.refused)}")


def explain(error: Exception) -> str:
    """Why a download failed and what to do."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:  # the client looked into its cache in vain
        error = error.__cause__
    status, url = 0, ""
    if isinstance(error, HfHubHTTPError):
        status, url = error.response.status_code, str(error.response.url).split("?")[0]
    if isinstance(error, GatedRepoError):
        licence = f"{error.repo_id} is gated: accept its licence on {ENDPOINT}/{error.repo_id}"
        return f"{licence}, then hf auth login" if status == 401 else f"{licence} as the account that is logged in"
    if isinstance(error, RepositoryNotFoundError):
        return f"{ENDPOINT} shows you no repository {error.repo_id}: check the name; if it is private, hf auth login"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to download"
    if status in (401, 403) and url.startswith(ENDPOINT):
        return f"{ENDPOINT} refuses your token ({status}): hf auth login again, or unset HF_TOKEN"
    if status:
        return f"{url} answers {status}: try again later, or see whether it has moved"
    if isinstance(error, HTTPError):
        return f"no connection ({error}): check the network and HTTPS_PROXY; the same command goes on from here"
    return str(error)


def checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human(size: float) -> str:
    """Bytes as the hub shows them: 9.98 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"
