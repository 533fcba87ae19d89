"""python -m spectrum_bench <command>: the same as spectrum-bench."""

from spectrum_bench.commands.main import main

if __name__ == "__main__":
    main()
