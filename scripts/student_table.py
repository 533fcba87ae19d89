"""A distilled student's rows beside its teacher's, as CSV: python scripts/student_table.py <out.csv> <folder>

The folder holds scored runs as scripts/student.sh makes them: the reference `nocache`, `student-4`, and others."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from spectrum_bench.commands import ending  # noqa: E402
from spectrum_bench.sampling.records import write_atomically  # noqa: E402
from spectrum_bench.scoring.experiments import Experiment, find_experiments, read_experiment  # noqa: E402
from spectrum_bench.scoring.results import load  # noqa: E402
from spectrum_bench.scoring.stats import estimate, holm, sign_flip  # noqa: E402

BASELINE = "student-4"


def main(words: list[str]) -> None:
    out, folder = words
    table = table_of([read_experiment(path) for path in find_experiments([Path(folder)])])
    write_atomically(Path(out), table.to_csv(index=False, float_format="%.4g").encode())
    print(table.to_string(index=False, float_format="{:.3g}".format))


def table_of(runs: list[Experiment]) -> pd.DataFrame:
    """A line a row, the most passes first. `caption_less_student` is the paired difference of the share of captions
    followed from the student's, p values by flipping signs, corrected for the number of other rows."""
    by_name = {run.folder.name: run for run in runs}
    reference = by_name["nocache"]
    scores = {name: load(run, reference)[0] for name, run in by_name.items() if run is not reference}
    lines = [line(by_name[name], scores[name], scores[BASELINE]) for name in scores]
    others = [each for each in lines if each["row"] != BASELINE]
    for each, p in zip(others, holm([each["p"] for each in others]), strict=True):
        each["p_holm"] = p
    lines.sort(key=lambda each: (-each["passes"], each["row"]))
    return pd.DataFrame(lines).drop(columns="p")


def line(run: Experiment, scores: pd.DataFrame, student: pd.DataFrame) -> dict[str, Any]:
    difference = scores["caption"] - student["caption"]
    found = estimate(difference, range(len(difference)))
    return {
        "row": run.folder.name,
        "passes": sum(record.nfe for record in run.records) / len(run.records),
        "steps": run.steps,
        "n": len(scores),
        "caption": scores["caption"].mean(),
        "caption_less_student": found.mean,
        "low": found.low,
        "high": found.high,
        "p": sign_flip(difference.to_numpy()) if difference.any() else 1.0,
        "psnr": scores["psnr"].mean(),
        "psnr_worst": scores["psnr"].min(),
        "ssim": scores["ssim"].mean(),
        "model": run.model["name"],
    }


if __name__ == "__main__":
    ending.run(main)
