"""The best settings for so many passes: python src/tune.py -m hydra/sweeper=tune 'algo.w=interval(0,1)'"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("tune")
