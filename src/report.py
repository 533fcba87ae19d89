"""Table, plot and page of scored runs: python src/report.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("report")
