"""The threshold for a number of network passes: python src/budget.py algo=teacache model=tiny-flux passes=14"""

from spectrum_bench.commands.budget import main
from spectrum_bench.commands.entry import hydra_entry

main = hydra_entry("budget", main)

if __name__ == "__main__":
    main()
