"""What attacks on command lines share: tables of cases, and commands as a child process calls them."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from attack import ACCEPTED, Outcome, attack_in_turn
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from spectrum_bench.commands import (
    budget,
    calibrate,
    conformance,
    cost,
    ending,
    evaluate,
    replay,
    report,
    reproduce,
    rows,
    run,
    score,
    search,
    trace,
    try_,
    tune,
    verify,
)
from spectrum_bench.commands.entry import call, check_words, hydra_entry

Case = TypeVar("Case")


def groups(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases, so many together that a child's start is a small part of what they take."""
    cases = list(cases)
    return [cases[first : first + 20] for first in range(0, len(cases), 20)]


def all_refused(outcomes: Mapping[str, Outcome]) -> None:
    """Fail unless each work was refused in one line and left nothing behind."""
    assert not {work: outcome for work, outcome in outcomes.items() if outcome.verdict != "refused"}


def refuse(cases: list[tuple[str, str]], folder: Path) -> None:
    """Fail unless each command refuses its words."""
    works = {f"{name} {line}": lambda name=name, line=line: command(name, shlex.split(line)) for name, line in cases}
    all_refused(attack_in_turn(works, folder))


def lines(table: str) -> list[str]:
    return table.split("\n")[1:-1]


def ids(line: str) -> str:
    return line if len(line) < 80 else f"{line[:77]}..."


def first_of(cases: list[Case]) -> str:
    """The name of a group in pytest's output."""
    return ids(cases[0] if isinstance(cases[0], str) else " ".join(cases[0]))


def accept(*_: object, **__: object) -> None:
    """In place of a model: what comes so far was not refused."""
    os._exit(ACCEPTED)


COMPOSED = {"base": run.main, "budget": budget.main, "calibrate": calibrate.main, "tune": tune.main}
COMPOSED |= {"cost": cost.main, "trace": trace.main, "replay": replay.main, "search": search.main}
PLAIN = {"evaluate": evaluate.main, "report": report.main, "reproduce": reproduce.main}
PLAIN |= {
    "rows": rows.main,
    "score": score.main,
    "conformance": conformance.main,
    "verify": verify.main,
    "try": try_.main,
}


def command(name: str, words: list[str]) -> None:
    sys.argv = [name, *words]
    if name in PLAIN:
        return ending.run(PLAIN[name])
    cfg = check_words(name, words)  # Hydra would compose it twice more
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    call(COMPOSED[name], cfg)


def whole_command(name: str, words: list[str]) -> None:
    sys.argv = [name, *words]
    hydra_entry(name, COMPOSED[name])()
