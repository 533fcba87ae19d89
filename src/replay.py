"""A schedule and a forecaster without the network: python src/replay.py model=tiny-flux algo=spectrum"""

from spectrum_bench.commands.entry import hydra_entry
from spectrum_bench.commands.replay import main

main = hydra_entry("replay", main)

if __name__ == "__main__":
    main()
