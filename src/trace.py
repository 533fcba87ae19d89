"""What an uncached run tells about every schedule: python src/trace.py model=tiny-flux"""

from spectrum_bench.commands.entry import hydra_entry
from spectrum_bench.commands.trace import main

main = hydra_entry("trace", main)

if __name__ == "__main__":
    main()
