"""The threshold for a number of network passes: python src/budget.py algo=teacache model=tiny-flux passes=14"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("budget")
