"""Compare scored experiments in a table, a plot and a page with the pictures.

usage: python src/report.py <dir> [<dir> ...] reference=<dir> out=<dir> [key=value ...]

  <dir>             an experiment directory, scored by evaluate.py, or a folder of them
  reference=<dir>   the run that they were scored against
  out=<dir>         where to write table.md table.csv table.tex prompts.csv plot.png plot.svg index.html
  baseline=<name>   the experiment from which the others' differences are taken: differences.md differences.csv
  align=passes      compare methods at equal passes; or align=latency, align=memory
  margin=1          per cent of the reference's own score that a method may lose to be named as fast enough
  matters=psnr:0.5  how large a difference matters, of one metric or more (ssim:0.01): statistics.md says how sure the
                    order is, which differences are real or too small to matter, and how many prompts would decide
  categories=<file> a table with the columns prompt and category: categories.md gives the means of each category
  rows=16           most prompts that the page shows pictures of
"""

from pathlib import Path

from spectrum_bench.commands import words as arguments
from spectrum_bench.errors import UserError

OPTIONS = {
    "reference": None,
    "out": None,
    "baseline": "",
    "align": "passes",
    "margin": "1",
    "matters": "",
    "categories": "",
    "rows": "16",
}


def main(argv: list[str]) -> None:
    folders, options = arguments.parse(argv, __doc__, OPTIONS)
    rows = arguments.count("rows", options["rows"])
    margin = options["margin"]
    if not (margin.isascii() and margin.replace(".", "", 1).isdecimal() and float(margin) <= 100):
        raise UserError(f"margin={margin[:80]} is no percentage: write margin=1")
    matters = differences(options["matters"])
    from spectrum_bench.reporting import categories, statistics
    from spectrum_bench.reporting.formats import plain
    from spectrum_bench.reporting.page import write_report
    from spectrum_bench.reporting.tables import BUDGETS
    from spectrum_bench.scoring.experiments import find_experiments, read_experiment

    kinds = categories.read(Path(options["categories"])) if options["categories"] else {}
    if options["align"] not in BUDGETS:
        raise UserError(f"align={options['align']} is none of {', '.join(BUDGETS)}")
    reference = read_experiment(Path(options["reference"]))
    experiments = [read_experiment(folder) for folder in find_experiments(folders)]
    out = Path(options["out"])
    table = write_report(
        experiments,
        reference,
        out,
        rows,
        margin=float(margin) / 100,
        align=options["align"],
        baseline=options["baseline"],
        beside=lambda table: (
            (statistics.files(table, matters) if matters else {}) | (categories.files(table, kinds) if kinds else {})
        ),
    )
    print(plain(table))
    print(f"\nTables, plot and page: {(out / 'index.html').resolve()}")


def differences(words: str) -> dict[str, float]:
    """psnr:0.5,ssim:0.01 as metric -> difference.

    Raises:
        UserError: a metric is unknown, or a difference is no number above 0.
    """
    from spectrum_bench.scoring.metrics import METRICS

    found: dict[str, float] = {}
    for word in words.split(",") if words else ():
        metric, _, value = word.partition(":")
        if metric not in METRICS:
            raise UserError(f"matters={word[:80]} names no metric{arguments.nearest(metric, list(METRICS))}")
        if not (value.isascii() and value.replace(".", "", 1).isdecimal() and len(value) < 10 and float(value) > 0):
            raise UserError(f"matters={word[:80]} is no difference: write matters={metric}:0.5")
        found[metric] = float(value)
    return found
