"""The best steps for a forecaster: python src/search.py model=tiny-flux algo=spectrum passes=14"""

from spectrum_bench.commands.entry import hydra_entry
from spectrum_bench.commands.search import main

main = hydra_entry("search", main)

if __name__ == "__main__":
    main()
