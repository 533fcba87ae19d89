"""Remote files, in a Hugging Face repository or at a URL, and how each is fetched completely."""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.prompts import read_prompts
from spectrum_bench.sampling.records import write_atomically


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository; the hub's client keeps it in its own cache."""

    repo: str
    name: str
    size: int  # bytes
    commit: str
    blob: str  # the name of its content in the cache
    last: bool  # whether it is the last file that is fetched from the newest commit of this repository

    @property
    def folder(self) -> Path:
        return Path(HF_HUB_CACHE)

    @property
    def left(self) -> int:
        """Bytes to fetch. The client starts an interrupted file again."""
        return self.size

    @property
    def is_large(self) -> bool:
        """Whether the hub names its content by sha256. A small file it names by git's own sum."""
        return re.fullmatch(r"[0-9a-f]{64}", self.blob) is not None

    def is_here(self) -> bool:
        blob = self.folder / f"models--{self.repo.replace('/', '--')}" / "blobs" / self.blob
        return blob.exists() or isinstance(try_to_load_from_cache(self.repo, self.name, revision=self.commit), str)

    def fetch(self) -> None:
        """Download the file. The client compares its size; its content is compared here.

        Raises:
            UserError: the checksum differs; the file was deleted.
        """
        # The client records which commit "main" is only when it is asked for "main". We ask last, so that an
        # interrupted repository does not look complete. snapshot_download would fetch files that nothing needs.
        path = Path(hf_hub_download(self.repo, self.name, revision=None if self.last else self.commit))
        if self.is_large and checksum(path) != self.blob:
            path.resolve().unlink()
            raise UserError(f"{self.repo}: {self.name} has another sha256 than the hub's list says: try again")


@dataclass(frozen=True)
class WebFile:
    """A file at a URL. It is moved to `path` when its checksum is right, and never replaces another file."""

    url: str
    path: Path
    size: int  # bytes
    sha256: str

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def part(self) -> Path:
        """The file that holds the bytes fetched so far."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def left(self) -> int:
        """Bytes to fetch."""
        return self.size - (self.part.stat().st_size if self.part.exists() else 0)

    def is_here(self) -> bool:
        if not self.path.is_file():
            return False
        if checksum(self.path) != self.sha256:
            raise UserError(f"{self.path} was edited or is damaged (its sha256 is another): move it away and try again")
        return True

    def fetch(self) -> None:
        """Download the file, or the rest of it.

        Raises:
            UserError: the checksum differs; the fetched bytes were deleted.
            HTTPError, OSError: the server, the network or the disk fails.
        """
        if self.path.is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.part, "ab") as file:  # goes on where an earlier run was interrupted
            if file.tell() < self.size:
                plain = {"Accept-Encoding": "identity"}  # a compressed response could not be resumed
                http_get(self.url, file, resume_size=file.tell(), headers=plain, displayed_filename=self.path.name)
        digest = checksum(self.part)
        if digest != self.sha256:
            self.part.unlink()
            raise UserError(
                f"{self.url} has sha256 {digest[:8]}…, not {self.sha256[:8]}…, and was thrown away: try again; if that "
                "repeats, the file has changed there, and what names it here must name another"
            )
        self.part.replace(self.path)


class PromptList(WebFile):
    """A text file with one prompt a line. A JSON file beside it names its source."""

    def fetch(self) -> None:
        super().fetch()
        origin = {"url": self.url, "sha256": self.sha256, "prompts": len(read_prompts(self.path))}
        write_atomically(self.path.with_suffix(".json"), (json.dumps(origin, indent=2) + "\n").encode())


File = HubFile | WebFile


def check_space(files: Iterable[File]) -> None:
    """Refuse files that do not fit on their disks.

    Raises:
        UserError: a disk is too small.
    """
    places: dict[int, Path] = {}  # disk -> a folder on it
    needed: Counter[int] = Counter()
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


def checksum(path: Path) -> str:
    """The file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human(size: float) -> str:
    """Bytes as the hub shows them: 9.98 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"


def explain(error: Exception) -> str:
    """Why a download failed, and what to do."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client did not find the file in its cache
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
