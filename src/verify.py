"""Make some samples of a finished run anew, and compare them: python src/verify.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("verify")
