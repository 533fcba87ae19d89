"""What a sample computes and holds, without weights: python src/cost.py model=flux algo=spectrum card=80"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("cost")
