"""Score pictures or clips that other code made, against a reference that it made too.

usage: python src/score.py <folder> [<folder> ...] reference=<folder> [key=value ...]

  <folder>            pictures or clips of one method; JPEG and coded clips are taken, with a note on what that costs
  reference=<folder>  those of the plain pipeline: the same prompts, seeds and size
  prompts=<file>      the list of prompts, for metrics that read them
  by=auto             how files pair: name, index (img_12), prompt (a red ring-0), mtime, or a .csv file with the
                      columns file and index; auto takes the first way that is clear
  times=<file.json>   {"<folder>": {"seconds": [3.1, 3.2], "steps": 50, "passes": 14, "device": "H100"}}, for speedups
  metrics=psnr,ssim   metrics to compute; by default PSNR, SSIM and LPIPS, with prompts also those that read them
                      metrics=as:freqca takes those nearest to a paper's tables; src/evaluate.py --help names more
  out=scored          where the decoded samples, the scores and the report go
  rows=16             most prompts that the page shows pictures of
  markdown=false      true prints a block for a pull request
"""

import shutil
import sys
from itertools import count as count_from
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum_bench.commands import words as arguments
from spectrum_bench.commands.ending import say
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.text import printable

if TYPE_CHECKING:
    from spectrum_bench.scoring.experiments import Experiment
    from spectrum_bench.scoring.foreign.experiments import Folder

OPTIONS = {"reference": None, "prompts": "", "by": "auto", "times": "", "metrics": "", "out": "scored", "rows": "16"}
OPTIONS |= {"markdown": "false"}


def main(argv: list[str]) -> None:
    folders, options = arguments.parse(argv, __doc__, OPTIONS)
    arguments.count("rows", options["rows"])
    if options["markdown"] not in ("true", "false"):
        raise UserError(f"markdown={options['markdown'][:80]}: write markdown=true")
    from spectrum_bench.sampling.prompts import read_prompt_file
    from spectrum_bench.scoring.foreign import pairing
    from spectrum_bench.scoring.foreign.experiments import Folder, annotate, bring_in
    from spectrum_bench.scoring.foreign.strangers import check_pairs
    from spectrum_bench.scoring.foreign.times import Told, read_times
    from spectrum_bench.scoring.metrics import ModelFacts, chosen

    chosen(ModelFacts(), options["metrics"])
    reference, out = Path(options["reference"]), Path(options["out"])
    prompts = read_prompt_file(options["prompts"]).lines if options["prompts"] else ()
    times = read_times(Path(options["times"])) if options["times"] else {}
    names = row_names([reference, *folders])
    if strangers := times.keys() - set(names.values()):
        raise UserError(f"times= names {min(strangers)}, which is none of {', '.join(names.values())}")
    texts = [prompt.text for prompt in prompts]
    way, keys = pairing.keys({folder: pairing.find(folder) for folder in names}, options["by"], texts)
    ranks = pairing.ranks(keys.values())
    given = [Folder(folder, name, keys[folder]) for folder, name in names.items()]

    told = {name: times.get(name, Told()) for name in names.values()}
    fresh = not out.exists()
    try:
        target = bring_in(given[0], out / "reference", prompts, ranks, told[given[0].name]).experiment
        experiments, notes = [], []
        for folder in given[1:]:
            place = out / "rows" / folder.name
            brought = bring_in(folder, place, prompts, ranks, told[folder.name], target)
            experiments.append(brought.experiment)
            notes += brought.notes + check_pairs(brought.experiment, target)
    except UserError:
        if fresh:
            shutil.rmtree(out, ignore_errors=True)
        raise
    paired = f"by {way}: {printable(example(given))}"
    print(paired, file=sys.stderr) if options["markdown"] == "true" else say(paired)  # a block alone is copied
    show(experiments, annotate(target, notes), out, options, " ".join(["spectrum-bench score", *argv]))


def show(experiments: "list[Experiment]", target: "Experiment", out: Path, options: dict[str, str], line: str) -> None:
    """Score the experiments, write the report, and print the table."""
    from spectrum_bench.reporting.block import block
    from spectrum_bench.reporting.formats import plain
    from spectrum_bench.reporting.page import write_report
    from spectrum_bench.scoring.evaluation import evaluate
    from spectrum_bench.scoring.metrics import papers

    for note in papers.describe(options["metrics"], clips=bool(target.facts.fps)):
        print(note, file=sys.stderr)
    scored = list(evaluate(experiments, target, options["metrics"] or None))
    table = write_report(experiments, target, out / "report", int(options["rows"]))
    if options["markdown"] == "true":
        print(block(table, line, scored[0][1]["versions"]))
    else:
        print(plain(table))
        print(f"\nTables, plot and page: {(out / 'report' / 'index.html').resolve()}")


def row_names(folders: list[Path]) -> dict[Path, str]:
    """Folder -> the name of its row: the last part of its path, or as many as tell the folders apart.

    Raises:
        UserError: a folder is named twice.
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("a folder is named twice, or is its own reference")
    depth = next(n for n in count_from(1) if len({path.parts[-n:] for path in paths}) == len(paths))
    return {folder: "-".join(path.parts[-depth:]) for folder, path in zip(folders, paths, strict=True)}


def example(folders: "list[Folder]") -> str:
    """One pair, in words: img_0.png is that of img_0.jpg."""
    reference, first = folders[:2]
    owners = {key: path.name for path, key in reference.keys.items()}
    pairs = sorted((key, path.name) for path, key in first.keys.items() if key in owners)
    if not pairs:
        return "none do"
    key, name = pairs[0]
    return f"{len(pairs)} pairs, such as {first.name}/{name} and {reference.name}/{owners[key]}"
