"""Many runs in one process, which loads the model once: python src/rows.py rows.txt model=tiny-flux"""

from spectrum_bench.commands import words
from spectrum_bench.commands.rows import main

if __name__ == "__main__":
    words.run(main)
