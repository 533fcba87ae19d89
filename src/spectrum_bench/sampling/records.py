"""The outcome of each job, in an experiment directory that survives a `kill -9`."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TypedDict

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.jobs import Job


class Latency(TypedDict):
    """Seconds. A step's is the median of its kind; `skipped_step` is None where no step is skipped."""

    text: float
    denoise: float
    decode: float
    total: float
    full_step: float
    skipped_step: float | None


@dataclass
class Record:
    """One finished sample. Times in seconds, memory in bytes; None for what does not exist or was not measured."""

    id: str
    prompt_index: int
    prompt: str
    seed: int
    sample: str  # path below the experiment directory
    model: str
    algo: str
    schedule: str
    forecaster: str
    site: str
    num_inference_steps: int
    computed_steps: list[int]
    nfe: int  # passes through the whole network; two-call guidance counts once per step
    latency: Latency
    peak_memory_bytes: int | None
    cache_bytes: int  # the most bytes held at a time for forecasts and decisions
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    git_sha: str = "unknown"
    alone: bool = True  # whether no other program used the device much; otherwise the latency does not count
    sha256: str | None = None  # of the sample's file
    code: str | None = None  # hash of the package's sources, for installations without git
    schema: int = 1  # records of commit 6771973 and before have none


@dataclass
class Failure:
    """A sample that could not be made, and why."""

    id: str
    prompt_index: int
    prompt: str
    seed: int
    reason: str

    @classmethod
    def of(cls, job: Job, error: BaseException) -> "Failure":
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return cls(job.id, job.prompt_index, job.prompt, job.seed, reason)


def write_atomically(path: Path, data: bytes) -> None:
    """Write so that `path` holds either all of `data` or what it held before, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:  # a partial file would take space on a full disk
        part.unlink(missing_ok=True)
        raise


def save_record(folder: Path, record: Record) -> None:
    """Write the record into `records/`. From then on the sample counts as finished."""
    text = json.dumps(asdict(record), ensure_ascii=False)
    write_atomically(folder / "records" / f"{record.id}.json", text.encode())
    (folder / "failures" / f"{record.id}.json").unlink(missing_ok=True)


def save_failure(folder: Path, failure: Failure) -> None:
    """Write the failure into `failures/` and remove an older record. The sample is tried again only with
    retry_failed=true."""
    text = json.dumps(asdict(failure), ensure_ascii=False)
    write_atomically(folder / "failures" / f"{failure.id}.json", text.encode())
    (folder / "records" / f"{failure.id}.json").unlink(missing_ok=True)


def read_failures(folder: Path) -> list[Failure]:
    """The samples that failed, in the order of the prompts."""
    found = []
    for path in (Path(folder) / "failures").glob("*.json"):
        try:
            found.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged: delete it, and its sample is tried again") from None
    return sorted(found, key=lambda f: (f.prompt_index, f.seed))


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Lock an experiment directory, because two runs would make the same samples twice. The operating system releases
    the lock when the process ends, for whatever reason. Partial files of such a process are deleted.

    Raises:
        UserError: another run works in the directory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        _lock(file, folder)
        for part in folder.glob("*/.*.part"):
            part.unlink(missing_ok=True)
        yield


def _lock(file: IO[str], folder: Path) -> None:
    """Take the lock. Without locks the run goes on with a warning: files are written atomically in any case."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another run is at work in {folder}: wait for it, or choose another exp_name") from None
    except (ImportError, OSError):
        print(f"{folder}: no locks here: nobody keeps a second run out of this folder", file=sys.stderr)


def finished(folder: Path) -> set[str]:
    """Ids of the samples whose record and picture are both there."""
    return {r.id for r in _records(folder) if (folder / r.sample).exists()}


def collect_records(folder: Path) -> list[Record]:
    """Gather `records/*.json` into `records.jsonl`, in the order of the prompts, and return them."""
    records = sorted(_records(folder), key=lambda r: (r.prompt_index, r.seed, r.id))
    lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in records)
    write_atomically(folder / "records.jsonl", lines.encode())
    return records


def read_records(folder: Path) -> list[Record]:
    """The records of an experiment directory, from its `records.jsonl`.

    Raises:
        UserError: the directory or the file is missing, or holds no record.
    """
    path = Path(folder) / "records.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} is no experiment directory (no records.jsonl): name a folder that a run has made")
    try:
        records = [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged or of another version: run the experiment into a fresh folder") from None
    if not records:
        raise UserError(f"{path} is empty: run the experiment first")
    return records


def _records(folder: Path) -> list[Record]:
    found = []
    for path in (folder / "records").glob("*.json"):
        try:
            found.append(Record(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged: delete it, and its sample is made again") from None
    return found
