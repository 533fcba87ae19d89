"""What one core takes to read and to score a picture, for docs/costs.md: python tests/bench/scoring.py [side=1024]

Smooth random pictures with noise on them, written as a run writes them. The time is the thread's own: the median of 8.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import numpy as np
from scipy.ndimage import gaussian_filter

from spectrum_bench.sampling.media import encode, read
from spectrum_bench.scoring.metrics.pixel import psnr, ssim

PROMPTS, ROWS, CORES = 200, 12, 8


def timed(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> float:
    """Milliseconds of this thread, median over the calls."""
    took = []
    for call in calls:
        begun = time.thread_time()
        function(*call)
        took.append(1000 * (time.thread_time() - begun))
    return median(took)


def main(side: int) -> None:
    noise = np.random.default_rng(0)
    smooth = [255 * (0.5 + 4 * gaussian_filter(noise.normal(size=(side, side, 3)), (8, 8, 0))) for _ in range(8)]
    pairs = [
        tuple(np.clip(picture + noise.normal(0, sigma, picture.shape), 0, 255).astype(np.uint8) for sigma in (2, 4))
        for picture in smooth
    ]
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, (picture, _) in enumerate(pairs):
            file = Path(folder, f"{number}.png")
            file.write_bytes(encode(picture, None)[".png"])
            files.append((file,))
        each = {"read": timed(read, files), "psnr": timed(psnr, pairs), "ssim": timed(ssim, pairs)}
    for name, milliseconds in each.items():
        print(f"{name}: {milliseconds:.0f} ms a picture of {side}x{side}")
    seconds = PROMPTS * (ROWS * sum(each.values()) + each["read"]) / 1000
    print(
        f"{PROMPTS} prompts x {ROWS} rows: {seconds:.0f} s of one core, {seconds / CORES:.0f} s on {CORES} cores if "
        "they share the work evenly"
    )


if __name__ == "__main__":
    main(int(next((word.removeprefix("side=") for word in sys.argv[1:]), 1024)))
