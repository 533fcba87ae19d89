"""Fetch weights of models, lists of prompts and weights of metrics: python download.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("download")
