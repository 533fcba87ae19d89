"""Run a table or figure of a paper: python src/reproduce.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("reproduce")
