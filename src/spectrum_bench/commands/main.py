"""One command for all: spectrum-bench <command>.

usage: spectrum-bench <command> [words]

  try         a method's scores in one command, beside others with as many passes
  rows        many runs in one process, which loads the model once
  run         sample every prompt of a file: spectrum-bench run model=tiny-flux algo=spectrum
  evaluate    score runs against a reference run
  report      table, plot and page of scored runs
  leaderboard all rows of results/ on one page, and which method suits a model, a card and a speed
  score       pictures or clips that other code made, against its own reference
  conformance does a caching hook keep its promises: diffusers', cache-dit's or yours
  verify      make some samples of finished runs anew: are they what was sent?
  reproduce   a table or figure of a paper
  download    weights of models, lists of prompts, weights of metrics
  calibrate   measure a model for an algorithm that needs it
  budget      the threshold for a number of network passes
  cost        operations, cache and memory of a sample, without weights and GPU
  tune        one trial of a search for a method's settings
  trace       sample without caching, and keep what replay needs
  replay      a schedule and a forecaster from traces, without the network
  search      the best steps for a forecaster and a number of network passes
  list        the available algos, models, schedules, sites or metrics

`spectrum-bench <command> --help` says more of each. In a checkout python src/<command>.py does the same;
text_to_image.py, text_to_video.py, edit_image.py and image_to_video.py are `run`.
"""

import re
import sys
from importlib import import_module

from spectrum_bench.commands import ending, words
from spectrum_bench.errors import UserError
from spectrum_bench.version import __version__

COMPOSED = ("run", "calibrate", "budget", "cost", "tune", "trace", "replay", "search")  # Hydra composes their words
PLAIN = (
    "try",
    "rows",
    "evaluate",
    "report",
    "leaderboard",
    "score",
    "conformance",
    "verify",
    "reproduce",
    "download",
    "list",
)
MODULES = {"list": "list_", "try": "try_"}  # Python has these names


def main() -> None:
    """The console command."""
    ending.run(choose)


def start(name: str, config_name: str | None = None) -> None:
    """An entry script: run a command with the words of the command line.

    Args:
        config_name: of configs/, for a command whose words Hydra composes; by default the command's own name.
    """
    ending.run(lambda given: call(name, given, config_name or name))


def choose(given: list[str]) -> None:
    """Run the command that the first word names.

    Raises:
        UserError: there is no such command.
    """
    name, *rest = given or ["--help"]
    if name in ("-h", "--help"):
        print((__doc__ or "").strip())
        return
    if name == "--version":
        print(__version__)
        return
    if name not in (*COMPOSED, *PLAIN):
        near = words.nearest(name, [*COMPOSED, *PLAIN])
        raise UserError(f"there is no command {name}{near}: choose of {', '.join((*COMPOSED, *PLAIN))}")
    sys.argv = [f"spectrum-bench {name}", *rest]
    call(name, rest, config_of(name, rest))


def call(name: str, given: list[str], config_name: str) -> None:
    """Import a command, which takes a second, and run it."""
    module = import_module(f"spectrum_bench.commands.{MODULES.get(name, name)}")
    if name in PLAIN:
        module.main(given)
        return
    from spectrum_bench.commands.entry import hydra_entry

    hydra_entry(config_name, module.main)()


def config_of(name: str, given: list[str]) -> str:
    """The name of the configuration that a command composes. Runs of video models have their own."""
    if name != "run":
        return name
    import yaml

    from spectrum_bench.paths import MODELS

    models = [word.removeprefix("model=") for word in given if word.startswith("model=")]
    model = models[-1] if models else ""  # the one that Hydra takes
    if not re.fullmatch(r"[\w.-]{1,200}", model):
        return "base"  # which says what is wrong with it
    path = MODELS / f"{model}.yaml"
    return "video" if path.is_file() and "fps" in yaml.safe_load(path.read_text(encoding="utf-8")) else "base"
