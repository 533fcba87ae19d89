"""Which file of a folder is the sample of which prompt, where other code named the files.

A way gives each file a key. Files of two folders with one key are a pair. To add a way, write a function here and a
line in WAYS.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import reading
from spectrum_bench.sampling.reading import Damaged, read_text

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
CLIPS = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})
CUT = 20  # letters and digits of a cut prompt that tell it from other words of a name


@dataclass(frozen=True, order=True)
class Key:
    """A file's place: the prompt's number in the list, or the rank of the name, and the number of the sample among
    those of one prompt."""

    index: int
    sample: int = 0
    name: str = ""  # where names alone tell the place


class Unclear(Exception):
    """A way does not tell the files of a folder apart. The message says why."""


Names = Mapping[Path, str]  # file -> its path below the folder, without suffix
Way = Callable[[Names, Sequence[str]], dict[Path, Key]]


def find(folder: Path) -> Names:
    """The pictures or the clips of a folder, or where it holds none those in its folders: file -> its name, the path
    below the folder without suffix.

    Raises:
        UserError: there is none, or there are both.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name a folder of pictures or clips")
    kinds = PICTURES | CLIPS
    files = [path for path in folder.iterdir() if path.suffix.lower() in kinds and path.is_file()]
    if not files:
        hidden = re.compile(r"(^|/)\.")
        below = (path for path in folder.rglob("*") if path.suffix.lower() in kinds and path.is_file())
        files = [path for path in below if not hidden.search(path.relative_to(folder).as_posix())]
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        raise UserError(f"{folder} holds no picture and no clip ({', '.join(sorted(kinds))})")
    made = {path.suffix.lower() in CLIPS for path in files}
    if len(made) > 1:
        raise UserError(f"{folder} holds pictures and clips: put them into two folders")
    names = {path: path.relative_to(folder).with_suffix("").as_posix() for path in files}
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise UserError(f"{folder} has two files named {twice[0]}: keep one suffix")
    return names


def keys(folders: Mapping[Path, Names], by: str, prompts: Sequence[str]) -> tuple[str, dict[Path, dict[Path, Key]]]:
    """The key of every file of every folder, and the way that gave it.

    Args:
        by: a name in WAYS, the path of a CSV file, or "auto": the first way that tells all files of all folders apart
            and leaves at least half of each folder a partner in the first one; or with prompts each folder's own way;
            or where each folder holds one file, these.
        prompts: the list of prompts; empty if there is none.

    Raises:
        UserError: the way does not fit, or no way does.
    """
    if by.lower().endswith(".csv"):
        return by, {folder: _listed(Path(by), folder, names, prompts) for folder, names in folders.items()}
    if by != "auto":
        if by not in WAYS:
            raise UserError(f"by={by} is none of {', '.join(WAYS)} and no .csv file")
        try:
            return by, {folder: WAYS[by](names, prompts) for folder, names in folders.items()}
        except Unclear as reason:
            raise UserError(f"by={by}: {reason}") from None
    reasons = []
    for way in OBVIOUS if prompts else OBVIOUS[::-1]:
        try:
            found = {folder: WAYS[way](names, prompts) for folder, names in folders.items()}
        except Unclear as reason:
            reasons.append(f"by={way}: {reason}")
            continue
        if _have_partners(found):
            return way, found
        reasons.append(f"by={way}: most files have no partner")
    if prompts and _have_partners(found := _each_by_its_own(folders, prompts)):
        return "prompt or index", found
    if len(prompts) <= 1 and all(len(names) == 1 for names in folders.values()):
        return "being the only one", {folder: {path: Key(0) for path in names} for folder, names in folders.items()}
    raise UserError(
        f"the names do not tell which files are a pair ({'; '.join(reasons)}): give by=mtime, or by=<file>.csv with "
        "the columns file and index"
    )


def _have_partners(found: Mapping[Path, Mapping[Path, Key]]) -> bool:
    """Whether at least half of each folder has a partner in the first one."""
    first = set(next(iter(found.values())).values())
    return all(2 * len(first & set(own.values())) >= max(1, min(len(own), len(first))) for own in found.values())


def _each_by_its_own(folders: Mapping[Path, Names], prompts: Sequence[str]) -> dict[Path, dict[Path, Key]]:
    """Each folder by the first way that is clear for it: with a list of prompts a key is a line of it in any way. A
    folder for which none is clear has no key."""
    found: dict[Path, dict[Path, Key]] = {}
    for folder, names in folders.items():
        found[folder] = {}
        for way in ("index", "prompt"):
            with suppress(Unclear):
                found[folder] = WAYS[way](names, prompts)
    return found


def ranks(found: Iterable[Mapping[Path, Key]]) -> dict[str, int]:
    """The place of each name among all names of all folders, where names alone tell which files are a pair."""
    names = {key.name for keys in found for key in keys.values()} - {""}
    return {name: place for place, name in enumerate(sorted(names, key=natural))}


# ---------------------------------------------------------------------------------------------------------------------
# Ways


def by_name(names: Names, prompts: Sequence[str]) -> dict[Path, Key]:
    """A pair has one name. The prompts' order is that of the names, numbers in them as numbers."""
    if prompts:
        raise Unclear("names do not say which prompt is whose")
    return {path: Key(0, name=name) for path, name in names.items()}


def by_index(names: Names, prompts: Sequence[str]) -> dict[Path, Key]:
    """A pair has one number: img_12, or 12_a-red-ring. It is the line of the prompt, from 0, or from 1 if there are as
    many prompts as the largest number."""
    numbers = {path: [int(n) for n in re.findall(r"\d{1,9}", name)] for path, name in names.items()}
    if without := [names[path] for path, found in numbers.items() if not found]:
        raise Unclear(f"{without[0]} has no number")
    candidates = {tuple(found[end] for found in numbers.values()) for end in (0, -1)}
    distinct = [values for values in candidates if len(set(values)) == len(values)]
    if len(distinct) != 1:
        example = next(iter(names.values()))
        raise Unclear(f"{'two numbers' if distinct else 'no number'} in {example} could be the index")
    indices = dict(zip(numbers, distinct[0], strict=True))
    from_one = bool(prompts) and min(indices.values()) == 1 and max(indices.values()) == len(prompts)
    if prompts and max(indices.values()) - from_one >= len(prompts):
        raise Unclear(f"there is no prompt {max(indices.values())}: the list has {len(prompts)}")
    return {path: Key(index - from_one) for path, index in indices.items()}


def by_prompt(names: Names, prompts: Sequence[str]) -> dict[Path, Key]:
    """A name begins with its prompt, whole or cut off, and may end in the number of the sample, as VBench has it:
    a red ring-0. Or the prompt stands behind other words, such as a time and a seed. Only letters and digits count."""
    if not prompts:
        raise Unclear("it needs prompts=<file>")
    plain = {_letters(prompt): index for index, prompt in reversed(list(enumerate(prompts)))}
    found: dict[Path, Key] = {}
    for path, name in names.items():
        last = name.rsplit("/", 1)[-1]
        title, sample = _numbered(last)
        own = _letters(title)
        whole = plain.get(own, plain.get(_letters(last)))
        starts = [index for prompt, index in plain.items() if own and prompt.startswith(own)]
        if whole is None and len(starts) > 1:
            raise Unclear(f"{name} begins {len(starts)} prompts")
        if whole is None and not starts:
            found[path] = _behind(last, plain)
        else:
            found[path] = Key(starts[0] if whole is None else whole, sample if own in plain or whole is None else 0)
    return _distinct(found, names)


def _behind(name: str, plain: Mapping[str, int]) -> Key:
    """The prompt that stands in a name behind other words, whole or cut off, and the seed that these may hold.

    Raises:
        Unclear: there is none.
    """
    without_time = re.sub(r"([-_]\d{6,})+$", "", name)
    for before in re.finditer(r"[-_]+", without_time):
        own = _letters(without_time[before.end() :])
        fits = [plain[own]] if own in plain else []
        if not fits and len(own) >= CUT:
            fits = [index for prompt, index in plain.items() if prompt.startswith(own)]
        if len(fits) == 1:
            seed = re.search(r"seed[-_]?(\d{1,9})", without_time[: before.end()])
            return Key(fits[0], int(seed[1]) if seed else 0)
    raise Unclear(f"{name} holds no prompt")


def by_mtime(names: Names, prompts: Sequence[str]) -> dict[Path, Key]:
    """Files were written in the order of the prompts."""
    ordered = sorted(names, key=lambda path: (path.stat().st_mtime_ns, natural(names[path])))
    if prompts and len(ordered) > len(prompts):
        raise Unclear(f"there are {len(ordered)} files and {len(prompts)} prompts")
    return {path: Key(index) for index, path in enumerate(ordered)}


WAYS: dict[str, Way] = {"name": by_name, "index": by_index, "prompt": by_prompt, "mtime": by_mtime}
OBVIOUS = ("prompt", "index", "name")  # what is tried where nothing is said; without prompts names first


def _listed(table: Path, folder: Path, names: Names, prompts: Sequence[str]) -> dict[Path, Key]:
    """The keys that a CSV file gives: columns file (name or path below the folder), index, and if a prompt has several
    samples sample.

    Raises:
        UserError: the file is missing or no such table, or a file of the folder is not in it.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table, reading.TABLE)), strict=True))
        given = {row["file"]: Key(int(row["index"]), int(row.get("sample") or 0)) for row in rows}
    except FileNotFoundError:
        raise UserError(f"there is no by={table}") from None
    except (Damaged, csv.Error, KeyError, ValueError, TypeError) as reason:
        raise UserError(f"{table} is no table with the columns file and index (whole numbers): {reason}") from None
    found: dict[Path, Key] = {}
    for path, name in names.items():
        words = (path.relative_to(folder).as_posix(), path.name, name)
        key = next((given[word] for word in words if word in given), None)
        if key is None:
            raise UserError(f"{table} does not list {path.name} of {folder}: add a line for it")
        if key.index < 0 or prompts and key.index >= len(prompts):
            raise UserError(f"{table}: there is no prompt {key.index}: they are numbered from 0")
        found[path] = key
    try:
        return _distinct(found, names)
    except Unclear as reason:
        raise UserError(f"{table}: {reason}") from None


def _distinct(found: dict[Path, Key], names: Names) -> dict[Path, Key]:
    owners: dict[Key, Path] = {}
    for path, key in found.items():
        if key in owners:
            raise Unclear(f"{names[owners[key]]} and {names[path]} are both sample {key.sample} of prompt {key.index}")
        owners[key] = path
    return found


def _numbered(name: str) -> tuple[str, int]:
    """a red ring-3 -> a red ring, 3."""
    match = re.fullmatch(r"(.+?)[-_](\d{1,6})", name)
    return (match[1], int(match[2])) if match else (name, 0)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which img_9 comes before img_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
