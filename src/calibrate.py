"""What an algorithm must know of a model: python src/calibrate.py algo=magcache model=tiny-flux"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("calibrate")
