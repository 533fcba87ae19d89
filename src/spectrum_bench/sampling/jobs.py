"""What is to be sampled: prompts and jobs."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from spectrum_bench.errors import UserError


@dataclass(frozen=True)
class Job:
    """One sample to make. `id` is a hash of everything that decides its pixels."""

    id: str
    prompt_index: int  # line in the prompt file, from 0, empty lines not counted
    prompt: str
    seed: int


def read_prompts(path: str | os.PathLike, limit: int | None = None) -> list[str]:
    """The prompts of a UTF-8 text file, one a line, empty lines left out; the first `limit` of them.

    Raises:
        UserError: no such file, not UTF-8, or no prompt in it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no prompt file {path}: give prompt_file=<text file with one prompt a line>") from None
    except IsADirectoryError:
        raise UserError(f"prompt_file={path} is a folder: name a text file with one prompt a line") from None
    except PermissionError:
        raise UserError(f"prompt file {path} may not be read: check its permissions") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 (line {line}): convert it, e.g. iconv -f latin1 -t utf-8") from None
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one a line")
    return prompts[:limit]


def make_jobs(prompts: list[str], seed: int, identity: dict, samples: int = 1) -> list[Job]:
    """`samples` jobs a prompt, with `seed` and those after it: all prompts with the first seed come first.

    A prompt that comes again gets an id of its own by counting how often it was seen before.

    Args:
        identity: the part of the configuration that decides pixels.
    """
    jobs = []
    for each in range(seed, seed + samples):
        seen: Counter[str] = Counter()
        for index, prompt in enumerate(prompts):
            key = json.dumps([identity, prompt, each, seen[prompt]], sort_keys=True, ensure_ascii=False)
            seen[prompt] += 1
            jobs.append(Job(hashlib.sha256(key.encode()).hexdigest()[:16], index, prompt, each))
    return jobs
