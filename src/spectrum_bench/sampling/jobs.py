"""Prompts, and the jobs that sample them."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.identity import Identity, sample_id
from spectrum_bench.sampling.limits import MOST_JOBS
from spectrum_bench.sampling.reading import Damaged, read_bytes

# A tokenizer's 77 to 512 tokens are some 2 KB; one line of 10 MB took 107 s of tokenizing a sample.
LONGEST = 2**16  # bytes of a prompt
LARGEST = 2**28  # bytes of a prompt file: some million prompts


@dataclass(frozen=True)
class Job:
    """One sample to make. `id` is a hash of everything that decides its pixels."""

    id: str
    prompt_index: int  # line in the prompt file, from 0, empty lines not counted
    prompt: str
    seed: int


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, and the hash of the bytes that they were read from."""

    texts: tuple[str, ...]
    sha256: str


def read_prompts(path: str | os.PathLike[str], limit: int | None = None) -> list[str]:
    """The prompts of a UTF-8 text file; see `read_prompt_file`."""
    return list(read_prompt_file(path, limit).texts)


def read_prompt_file(path: str | os.PathLike[str], limit: int | None = None) -> Prompts:
    """The first `limit` prompts of a UTF-8 text file, one a line. Empty lines are left out.

    Raises:
        UserError: no such file or no ordinary one, too large, not UTF-8, or no prompt in it.
    """
    path = Path(path)
    try:
        data = read_bytes(path, LARGEST)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no prompt file {path}: give prompt_file=<text file with one prompt a line>") from None
    except Damaged as reason:
        raise UserError(f"prompt file {reason}: name a text file with one prompt a line") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 (line {line}): convert it, e.g. iconv -f latin1 -t utf-8") from None
    prompts = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one a line")
    for index, prompt in enumerate(prompts):
        if len(prompt.encode()) > LONGEST:
            raise UserError(f"{path}: prompt {index} has more than {LONGEST // 1024} KiB: write one prompt a line")
    return Prompts(tuple(prompts[:limit]), hashlib.sha256(data).hexdigest())


def make_jobs(prompts: Sequence[str], seed: int, who: Identity, samples: int = 1) -> list[Job]:
    """`samples` jobs for each prompt, with `seed` and the next ones. All prompts with the first seed come first.

    A repeated prompt gets its own id from the number of times that it came before.

    Args:
        who: the settings that decide pixels, from `identity`.

    Raises:
        UserError: more samples than anybody makes in one run.
    """
    if len(prompts) * samples > MOST_JOBS:
        raise UserError(f"{len(prompts)} prompts times {samples} are more than {MOST_JOBS:,} samples: take fewer")
    jobs = []
    for each in range(seed, seed + samples):
        before: Counter[str] = Counter()
        for index, prompt in enumerate(prompts):
            jobs.append(Job(sample_id(who, prompt, each, before[prompt]), index, prompt, each))
            before[prompt] += 1
    return jobs
