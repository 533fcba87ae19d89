"""Compare scored experiments: table, plot and a page with the pictures.

usage: python src/report.py <dir> [<dir> ...] reference=<dir> out=<dir> [rows=16]

  <dir>             an experiment directory, scored by evaluate.py, or a folder of them
  reference=<dir>   the run that they were scored against
  out=<dir>         where to write table.md table.csv table.tex plot.png plot.svg index.html
  rows=16           most prompts that the page shows pictures of
"""

from pathlib import Path

from spectrum_bench import arguments
from spectrum_bench.jobs import UserError


def main(argv: list[str]) -> None:
    folders, options = arguments.parse(argv, __doc__, {"reference": None, "out": None, "rows": "16"})
    if not options["rows"].isdecimal() or int(options["rows"]) < 1:
        raise UserError(f"rows={options['rows']} is no number of prompts: write rows=16")
    from spectrum_bench.experiments import read_experiment
    from spectrum_bench.formats import plain
    from spectrum_bench.report import find_experiments, write_report

    reference = read_experiment(Path(options["reference"]))
    experiments = [read_experiment(folder) for folder in find_experiments(folders)]
    out = Path(options["out"])
    table = write_report(experiments, reference, out, int(options["rows"]))
    print(plain(table))
    print(f"\nTables, plot and page: {(out / 'index.html').resolve()}")


if __name__ == "__main__":
    arguments.run(main)
