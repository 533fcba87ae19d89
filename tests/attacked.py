"""What attacks on command lines share: tables of cases, and commands as a child process calls them."""

import os
import sys

from attack import ACCEPTED
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


def lines(table: str) -> list[str]:
    return table.split("\n")[1:-1]


def ids(line: str) -> str:
    return line if len(line) < 80 else f"{line[:77]}..."


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
