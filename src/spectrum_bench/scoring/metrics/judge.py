"""A judge of your own, such as a vision-language model that runs on your machine: a command that scores files.

The command of the environment variable SPECTRUM_BENCH_JUDGE gets two paths more: a manifest, of which each line is a
JSON object {"id", "path", "prompt"}, and a file to which it appends {"id", "judge": number} or {"id", "error": text}
for each of them. It runs with your rights, so no configuration can name it.
"""

import hashlib
import os
import shlex
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.scoring.metrics import isolated
from spectrum_bench.scoring.metrics.contracts import FilesScorer, ModelFacts, Scores

VARIABLE = "SPECTRUM_BENCH_JUDGE"


def make_judge(model: ModelFacts) -> FilesScorer:
    """The scorer with the command of VARIABLE.

    Raises:
        MetricUnavailable: there is none, or no such program.
    """
    try:
        command = shlex.split(os.environ.get(VARIABLE, ""))
    except ValueError as error:
        raise MetricUnavailable("judge", f"{VARIABLE} is no command ({error})", "close its quotes") from None
    if not command:
        raise MetricUnavailable("judge", "it is off", f"{VARIABLE}='python my_judge.py', and metrics=judge")
    if shutil.which(command[0]) is None:
        raise MetricUnavailable("judge", f"there is no program {command[0]}", f"mend {VARIABLE}")
    return partial(scorer, command)


def scorer(command: Sequence[str], items: Sequence[tuple[Path, str]]) -> list[Scores]:
    """The judge's scores of (path, prompt) samples, kept by command; nan where it says that it cannot.

    Raises:
        MetricUnavailable: the command fails, or a score is no finite number.
    """
    store = f"judge-{hashlib.sha256(shlex.join(command).encode()).hexdigest()[:8]}"
    lines = isolated.results("judge", (), items, store, program=command)
    for (path, _), line in zip(items, lines, strict=True):
        value = line.get("judge")
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
        if "error" not in line and not number:
            reason = f"its line of {path} has the score {value!r:.40}"
            fix = 'it must write {"id": ..., "judge": <number>}'
            raise MetricUnavailable("judge", reason, f"{fix}; delete {store}.jsonl in the experiments' scores/")
    return [{"judge": float(line.get("judge", "nan"))} for line in lines]
