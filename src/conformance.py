"""Check what a caching hook promises: python src/conformance.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("conformance")
