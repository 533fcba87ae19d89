"""A method's scores in one command, beside others with as many passes: python src/try.py algo=spectrum"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("try")
