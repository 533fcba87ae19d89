"""Score runs against a reference run: python src/evaluate.py --help"""

from spectrum_bench.commands.evaluate import main
from spectrum_bench.commands.words import run

if __name__ == "__main__":
    run(main)
