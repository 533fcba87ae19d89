"""The best steps for a forecaster: python src/search.py model=tiny-flux algo=spectrum passes=14"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("search")
