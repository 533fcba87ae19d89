"""Sample a clip for each picture of a list under a caching algorithm: python src/image_to_video.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("run", "image_to_video")
