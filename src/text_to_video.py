"""Sample every prompt of a file with a video model under a caching algorithm: python src/text_to_video.py --help"""

from spectrum_bench.commands.main import start

if __name__ == "__main__":
    start("run", "video")
