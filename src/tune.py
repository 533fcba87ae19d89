"""The best settings for so many passes: python src/tune.py -m hydra/sweeper=tune 'algo.w=interval(0,1)'"""

from spectrum_bench.commands.entry import hydra_entry
from spectrum_bench.commands.tune import main

main = hydra_entry("tune", main)

if __name__ == "__main__":
    main()
