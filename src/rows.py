"""Many runs in one process, which loads the model once: python src/rows.py rows.txt model=tiny-flux"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("rows")
