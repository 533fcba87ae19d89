"""What a sample computes and holds, without weights: python src/cost.py model=flux algo=spectrum card=80"""

from spectrum_bench.commands.cost import main
from spectrum_bench.commands.entry import hydra_entry

main = hydra_entry("cost", main)

if __name__ == "__main__":
    main()
