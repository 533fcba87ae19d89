"""What an algorithm must know of a model: python src/calibrate.py algo=magcache model=tiny-flux"""

from spectrum_bench.calibration import main
from spectrum_bench.cli import hydra_entry

main = hydra_entry("calibrate", main)

if __name__ == "__main__":
    main()
