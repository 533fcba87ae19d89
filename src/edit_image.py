"""Edit each picture of a list as its prompt says, under a caching algorithm: python src/edit_image.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("run", "edit_image")
