"""Score runs against a reference run: python src/evaluate.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("evaluate")
