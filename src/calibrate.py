"""Fit what TeaCache's gate needs to know of a model: python src/calibrate.py model=tiny-flux"""

from spectrum_bench.calibration import main
from spectrum_bench.cli import hydra_entry

main = hydra_entry("calibrate", main)

if __name__ == "__main__":
    main()
