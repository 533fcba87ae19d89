"""Score pictures that other code made: python src/score.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("score")
