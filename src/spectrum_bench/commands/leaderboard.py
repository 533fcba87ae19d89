"""All rows of a folder of results on one page: sorted, filtered, with ties that look like ties.

usage: spectrum-bench leaderboard [results=<folder>] [runs=<folder>] [out=leaderboard.html]

  results=<folder>   with the table.csv files of src/report.py in its subfolders; by default results/ of the checkout
  runs=<folder>      of runs at hand: the first samples of those that are a row of a table are shown beside it
  out=<file>         where to write the page, which needs no server and fetches nothing

Beside the rows the page answers which method suits a model, a card and a speed. bash scripts/site.sh builds it into the
documentation.
"""

from pathlib import Path

from spectrum_bench.commands import words as arguments
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.reporting.board import page
from spectrum_bench.reporting.board.read import read
from spectrum_bench.scoring.experiments import find_experiments, read_experiment

OPTIONS = {"results": str(ROOT / "results"), "runs": "", "out": "leaderboard.html"}


def main(argv: list[str]) -> None:
    """Write the page.

    Raises:
        UserError: there is no such folder, it holds no rows, or a file of it is damaged.
    """
    _, options = arguments.parse(argv, __doc__ or "", {**OPTIONS}, folderless=True)
    for value in options.values():
        arguments.check_length(value)
    folder, out = Path(options["results"]), Path(options["out"])
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name one that holds tables, results=<folder>")
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file, out={out / 'leaderboard.html'}")
    results = read(folder)
    runs = [read_experiment(path) for path in find_experiments([Path(options["runs"])])] if options["runs"] else []
    page.write(results, page.read_costs(folder), folder, out, runs)
    tables = len({entry.file for entry in results.entries})
    print(f"{out}: {len(results.entries)} rows of {tables} tables, {out.stat().st_size / 1e6:.1f} MB")
