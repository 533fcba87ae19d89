"""What an algorithm must know of a model: python src/calibrate.py algo=magcache model=tiny-flux"""

from spectrum_bench.commands.calibrate import main
from spectrum_bench.commands.entry import hydra_entry

main = hydra_entry("calibrate", main)

if __name__ == "__main__":
    main()
