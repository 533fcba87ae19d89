"""A schedule and a forecaster without the network: python src/replay.py model=tiny-flux algo=spectrum"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("replay")
