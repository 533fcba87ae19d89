"""The outcome of each job, in an experiment directory that survives a `kill -9`."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, TypedDict

import psutil

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import reading
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.limits import MOST_STEPS
from spectrum_bench.sampling.reading import Damaged, parse_json, read_lines, read_text, shown, typed
from spectrum_bench.sampling.settings import SCHEMA


class Latency(TypedDict, total=False):
    """Seconds. `full_step` and `skipped_step` are medians; `skipped_step` is None if no step is skipped. All of them,
    or none where nothing was measured."""

    text: float
    denoise: float
    decode: float
    total: float
    full_step: float
    skipped_step: float | None


@dataclass(slots=True)
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
    sample_bytes: int | None = None  # the file's size
    inputs: dict[str, str] = field(default_factory=dict)  # beside the prompt: argument of the call -> sha256
    networks: dict[str, list[int]] = field(default_factory=dict)  # where several run by turns: name -> its steps
    code: str | None = None  # hash of the package's sources, for installations without git
    target_caption: str | None = None  # of what the sample should show, where the prompt is an instruction
    elsewhere: bool = False  # made by other code: steps and passes are as told, 0 where nobody told
    schema: int = 1  # records of commit 6771973 and before have none

    @property
    def caption(self) -> str:
        """The text that metrics compare the sample with."""
        return self.target_caption or self.prompt

    @property
    def subject(self) -> str:
        """What the sample is of: its prompt, and the hashes of what stood beside it. Samples of one subject differ in
        their seeds, and statistics take their mean."""
        return "\n".join([self.prompt, *(f"{name} {self.inputs[name]}" for name in sorted(self.inputs))])


NAMES = [field.name for field in fields(Record)]
# Those that most samples of a run have in common. Nobody changes their values.
COMMON = ["model", "algo", "schedule", "forecaster", "site", "computed_steps", "device", "versions", "git_sha"]
COMMON += ["inputs", "networks", "code"]


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


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write so that `path` holds either all of `data`, which may come in parts, or what it held before, whenever the
    process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:  # a partial file would take space on a full disk
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a write itself does not name its file
        raise


def sweep(folder: Path) -> None:
    """Delete the partial files that writers have left in the folder when they died. One of a writer that is at work
    stays."""
    for part in folder.glob(".*.part"):
        number = part.name.split(".")[-2]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            part.unlink(missing_ok=True)


def save_record(folder: Path, record: Record) -> None:
    """Write the record into `records/`. From then on the sample counts as finished."""
    write_atomically(folder / "records" / f"{record.id}.json", _json(record).encode())
    (folder / "failures" / f"{record.id}.json").unlink(missing_ok=True)


def save_failure(folder: Path, failure: Failure) -> None:
    """Write the failure into `failures/` and remove an older record. The sample is tried again only with
    retry_failed=true."""
    text = json.dumps(asdict(failure), ensure_ascii=False)
    write_atomically(folder / "failures" / f"{failure.id}.json", text.encode())
    (folder / "records" / f"{failure.id}.json").unlink(missing_ok=True)


def read_failures(folder: Path) -> list[Failure]:
    """The samples that failed, in the order of the prompts."""
    failures = []
    for path in (Path(folder) / "failures").glob("*.json"):
        try:
            failures.append(typed(Failure, parse_json(read_text(path, reading.RECORD))))
        except Damaged as reason:
            raise UserError(f"{path} is damaged: delete it, and its sample is tried again ({reason})") from None
    return sorted(failures, key=lambda failure: (failure.prompt_index, failure.seed))


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


def finished(folder: Path, records: Iterable[Record]) -> set[str]:
    """The ids of the records whose samples have a file of the recorded size. Hashes would take as long as reading all
    samples; scoring compares them."""
    return {record.id for record in records if _is_whole(sample_file(folder, record), record.sample_bytes)}


def _is_whole(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)  # None: an older record


def sample_file(folder: Path, record: Record) -> Path:
    """The sample's file. A link that leads out of the experiment's samples/ counts as no file: what lies there is not
    the run's, and may be another run's picture.
    """
    path = folder / record.sample
    if path.is_symlink() and not os.path.realpath(path).startswith(os.path.realpath(folder / "samples") + os.sep):
        return path.with_name(f"{path.name} (a link out of samples)")
    return path


def collect_records(folder: Path, records: list[Record] | None = None) -> list[Record]:
    """Gather the records into `records.jsonl`, in the order of the prompts, and return them.

    Args:
        records: all of the folder's; None: those in `records/*.json`.
    """
    records = sorted(records or kept_records(folder), key=lambda r: (r.prompt_index, r.seed, r.id))
    write_atomically(folder / "records.jsonl", (f"{_json(record)}\n".encode() for record in records))
    return records


def _json(record: Record) -> str:
    return json.dumps({name: getattr(record, name) for name in NAMES}, ensure_ascii=False)


def read_records(folder: Path) -> list[Record]:
    """The records of an experiment directory, from its `records.jsonl`.

    Raises:
        UserError: the directory or the file is missing, or holds no record.
    """
    path = Path(folder) / "records.jsonl"
    try:
        lines, seen = read_lines(path, reading.TABLE), _Seen()
        records = [seen.share(_record(line, f"line {number}: ")) for number, line in enumerate(lines, 1) if line]
        _check_distinct(records)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no experiment directory (no records.jsonl): name a folder that a run has made"
        ) from None
    except Damaged as reason:
        raise UserError(
            f"{path} is damaged or of another version ({reason}): run the experiment into a fresh folder"
        ) from None
    if not records:
        raise UserError(f"{path} is empty: run the experiment first")
    return records


class _Seen:
    """What records of a run have in common, held once: a million records of one run take a third of the memory."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def share(self, record: Record) -> Record:
        for name in COMMON:
            value = getattr(record, name)
            setattr(record, name, self._values.setdefault(f"{name} {value}", value))
        return record


def kept_records(folder: Path) -> list[Record]:
    """The records of the finished samples, each from its own file.

    Raises:
        UserError: one is damaged.
    """
    records = []
    for path in (folder / "records").glob("*.json"):
        try:
            record = _record(read_text(path, reading.RECORD))
            if record.id != path.stem or not record.latency:
                raise Damaged(f"id is {record.id}" if record.latency else "latency is empty")
        except Damaged as reason:
            raise UserError(f"{path} is damaged: delete it, and its sample is made again ({reason})") from None
        records.append(record)
    return records


def _record(text: str, place: str = "") -> Record:
    try:
        values = parse_json(text)
        if isinstance(values, dict) and "pictures" in values:  # the name in older records
            values["inputs"] = values.pop("pictures")
        record = typed(Record, values)
        if wrong := next(_nonsense(record), None):
            raise Damaged(wrong)
    except Damaged as reason:
        raise Damaged(f"{place}{reason}") from None
    return record


def _nonsense(record: Record) -> Iterator[str]:
    """What of a record has the right type and cannot be."""
    counts = {"prompt_index": record.prompt_index, "seed": record.seed, "nfe": record.nfe}
    counts |= {"cache_bytes": record.cache_bytes, "peak_memory_bytes": record.peak_memory_bytes or 0}
    counts |= {"sample_bytes": record.sample_bytes or 0}
    latency = dict[str, Any](record.latency)
    times: dict[str, float] = {f"latency.{name}": value or 0 for name, value in latency.items()}
    yield from (f"{name} is {value}" for name, value in {**counts, **times}.items() if value < 0)
    lacking = sorted(Latency.__annotations__.keys() - record.latency.keys() if record.latency else ())
    if lacking and not record.elsewhere:
        yield f"latency.{lacking[0]} is missing"
    steps, computed = record.num_inference_steps, record.computed_steps
    if not (0 if record.elsewhere else 1) <= steps <= MOST_STEPS:
        yield f"num_inference_steps is {steps}"
    if computed != sorted(set(computed)) or computed and not 0 <= computed[0] <= computed[-1] < steps:
        yield "computed_steps are no steps of the sample"
    for name, ran in record.networks.items():
        if ran != sorted(set(ran)) or ran and not 0 <= ran[0] <= ran[-1] < steps:
            yield f"networks.{shown(name)} are no steps of the sample"
    if not re.fullmatch(r"[\w-]{1,64}", record.id):
        yield f"id is {shown(record.id)}"
    if not re.fullmatch(r"samples/\w[\w.-]{0,99}", record.sample):
        yield f"sample is {shown(record.sample)}, not a file below samples/"
    if not 1 <= record.schema <= SCHEMA:
        yield f"schema is {record.schema}"


def _check_distinct(records: list[Record]) -> None:
    for name, key in KEYS.items():
        seen = set[Any]()
        for record in records:
            if key(record) in seen:
                raise Damaged(f"two records of {name.format(record)}")
            seen.add(key(record))


KEYS: dict[str, Callable[[Record], Any]] = {
    "prompt {0.prompt_index} with seed {0.seed}": lambda record: (record.prompt_index, record.seed),
    "id {0.id}": lambda record: record.id,
    "sample {0.sample}": lambda record: record.sample,
}
