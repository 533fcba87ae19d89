"""text_to_image.py with model=sdxl, under the name that users of Spectrum's own code type."""

import sys

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    sys.argv[1:1] = [] if any(word.startswith("model=") for word in sys.argv) else ["model=sdxl"]
    start("run", "base")
