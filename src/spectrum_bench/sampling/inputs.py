"""What a line of a .jsonl prompt file gives the pipeline beside the prompt.

Another argument is an entry in KINDS. Nothing else knows the names or the kinds: prompts, jobs and records carry them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import media
from spectrum_bench.sampling.reading import Damaged, read_bytes


class Kind(NamedTuple):
    """A kind of input."""

    value: Callable[[bytes], Any]  # the pipeline's argument; raises Damaged or media.Unreadable
    largest: int  # bytes
    in_file: bool = True  # the line names a file of these bytes; False: the line itself holds them, as JSON


def _text(data: bytes) -> str:
    text = json.loads(data)
    if not isinstance(text, str):
        raise Damaged("is no text")
    return text


PICTURE = Kind(media.read_input, 2**26)
CLIP = Kind(media.read_input_clip, 2**28)
TEXT = Kind(_text, 2**16, in_file=False)

KINDS = {
    "image": PICTURE,
    "last_image": PICTURE,
    "mask_image": PICTURE,
    "control_image": PICTURE,
    "ip_adapter_image": PICTURE,
    "video": CLIP,
    "mask": CLIP,  # of a video
    "negative_prompt": TEXT,
}  # by the argument of diffusers' pipelines


@dataclass(frozen=True)
class Input:
    """One input of one prompt.

    Attributes:
        name: the argument of the pipeline's call.
        given: the file, or the JSON of the value itself.
        sha256: of the bytes.
    """

    name: str
    given: Path | str
    sha256: str

    def value(self) -> Any:
        """What the pipeline gets."""
        return KINDS[self.name].value(_bytes(self.given, KINDS[self.name].largest))


def hashes(inputs: tuple[Input, ...]) -> dict[str, str]:
    """Argument of the call -> sha256, as ids and records hold it."""
    return {each.name: each.sha256 for each in inputs}


def inputs_of(row: Mapping[str, Any], folder: Path, place: str) -> Iterator[Input]:
    """The inputs that a line gives, each opened once.

    Args:
        folder: the prompt file's; paths are relative to it.
        place: the line, for messages.

    Raises:
        UserError: a file is missing, or what is given is not of its kind.
    """
    for name, kind in KINDS.items():
        if name not in row:
            continue
        if kind.in_file and not isinstance(row[name], str):
            raise UserError(f"{place}: {name} is no path of a file")
        given = folder / row[name] if kind.in_file else json.dumps(row[name])
        try:
            data = _bytes(given, kind.largest)
            kind.value(data)
        except FileNotFoundError:
            raise UserError(f"{place}: there is no {name} {given}") from None
        except Damaged as reason:
            raise UserError(f"{place}: {name} {reason}") from None
        except media.Unreadable as reason:
            raise UserError(f"{place}: {name} {given} {reason}") from None
        yield Input(name, given, hashlib.sha256(data).hexdigest())


def _bytes(given: Path | str, largest: int) -> bytes:
    if isinstance(given, Path):
        return read_bytes(given, largest)
    data = given.encode()
    if len(data) > largest:
        raise Damaged(f"has more than {largest // 1024} KiB")
    return data
