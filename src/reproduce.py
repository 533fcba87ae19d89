"""Run a table or figure of a paper: python src/reproduce.py --help"""

from spectrum_bench.commands.reproduce import main
from spectrum_bench.commands.words import run

if __name__ == "__main__":
    run(main)
