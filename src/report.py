"""Table, plot and page of scored runs: python src/report.py --help"""

from spectrum_bench.commands.report import main
from spectrum_bench.commands.words import run

if __name__ == "__main__":
    run(main)
