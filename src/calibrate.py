"""What an algorithm must know of a model: python src/calibrate.py algo=magcache model=tiny-flux"""

from spectrum_bench.commands.entry import hydra_entry
from spectrum_bench.lab.calibration import main

main = hydra_entry("calibrate", main)

if __name__ == "__main__":
    main()
