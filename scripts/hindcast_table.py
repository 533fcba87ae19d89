"""Rows at equal passes beside Hindcast, as CSV: python scripts/hindcast_table.py <out.csv> <folder of scored runs>...

A folder holds the reference `nocache` and runs named <row>-<passes>, as scripts/hindcast.sh makes them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from spectrum_bench.commands import ending  # noqa: E402
from spectrum_bench.sampling.media import read  # noqa: E402
from spectrum_bench.sampling.records import write_atomically  # noqa: E402
from spectrum_bench.scoring.experiments import Experiment, find_experiments, read_experiment  # noqa: E402
from spectrum_bench.scoring.results import load  # noqa: E402
from spectrum_bench.scoring.stats import estimate, holm, sign_flip  # noqa: E402


def main(words: list[str]) -> None:
    out, *folders = words
    table = pd.concat([table_of([read_experiment(path) for path in find_experiments([Path(f)])]) for f in folders])
    write_atomically(Path(out), table.to_csv(index=False, float_format="%.4g").encode())
    print(table.to_string(index=False, float_format="{:.3g}".format))


def table_of(runs: list[Experiment]) -> pd.DataFrame:
    """A line a row and number of passes. Differences are the row's PSNR less Hindcast's, on the same samples; p values
    are corrected for the number of other rows with as many passes."""
    by_name = {run.folder.name: run for run in runs}
    reference = by_name.pop("nocache")
    scores = {name: with_edges(load(run, reference)[0], run, reference) for name, run in by_name.items()}
    lines = []
    for passes in sorted({int(name.rsplit("-", 1)[1]) for name in by_name}, reverse=True):
        names = sorted(name for name in by_name if name.endswith(f"-{passes}"))
        of_passes = [line(name, scores[name], scores[f"hindcast-{passes}"]) for name in names]
        others = [each for each in of_passes if each["row"] != "hindcast"]
        for each, p in zip(others, holm([each["p"] for each in others]), strict=True):
            each["p_holm"] = p
        lines += of_passes
    return pd.DataFrame(lines).drop(columns="p").assign(model=reference.model["name"])


def line(name: str, scores: pd.DataFrame, hindcast: pd.DataFrame) -> dict[str, Any]:
    psnr, difference = scores["psnr"], scores["psnr"] - hindcast["psnr"]
    found = estimate(difference, range(len(difference)))
    row, passes = name.rsplit("-", 1)
    return {
        "row": row,
        "passes": int(passes),
        "n": len(scores),
        "psnr": psnr.mean(),
        "psnr_worst": psnr.min(),
        "ssim": scores["ssim"].mean(),
        "caption": scores["caption"].mean() if "caption" in scores else None,
        "edges": scores["edges"].mean(),
        "psnr_less_hindcast": found.mean,
        "low": found.low,
        "high": found.high,
        "p": sign_flip(difference.to_numpy()) if difference.any() else 1.0,
    }


def with_edges(scores: pd.DataFrame, run: Experiment, reference: Experiment) -> pd.DataFrame:
    """The energy of the differences between neighbouring pixels, divided by the reference's: below 1 is softer."""
    return scores.assign(edges=[energy(run, key) / energy(reference, key) for key in scores.index])


def energy(run: Experiment, key: tuple[int, int]) -> float:
    """Of a picture, or of all frames of a clip."""
    pixels = read(run.sample(run.by_key[key])).astype(float)
    return float(sum(np.square(np.diff(pixels, axis=axis)).mean() for axis in (-3, -2)))


if __name__ == "__main__":
    ending.run(main)
