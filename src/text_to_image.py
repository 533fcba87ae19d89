"""Sample every prompt of a file with a model under a caching algorithm: python src/text_to_image.py --help"""

from spectrum_bench.commands.entry import hydra_entry
from spectrum_bench.commands.run import main

main = hydra_entry("base", main)

if __name__ == "__main__":
    main()
