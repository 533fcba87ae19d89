"""All rows of results/ on one page: python src/leaderboard.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("leaderboard")
