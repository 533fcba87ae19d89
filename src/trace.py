"""What an uncached run tells about every schedule: python src/trace.py model=tiny-flux"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("trace")
