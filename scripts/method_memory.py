"""Writes results/memory/methods.csv: what a sample of each model holds and computes under each method, counted without
weights and GPU, in about a minute of one core a model.
    python scripts/method_memory.py              all models that have an architecture
    python scripts/method_memory.py flux sdxl    these; the lines of others stay
"""

import csv
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import models
from memory import SMALLER, job, settings
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.architectures import FOLDER
from spectrum_bench.sampling.counting import count

FILE = ROOT / "results" / "memory" / "methods.csv"
HEAD = (
    "model",
    "size",
    "method",
    "steps",
    "passes",
    "weights_bytes",
    "working_bytes",
    "cache_bytes",
    "cache_bytes_a_pass",
)
HEAD += ("full_step_flops", "skipped_step_flops")
PASSES = 14  # of a method that decides on the way
METHODS = {  # the name of a row -> its words
    "nocache": ("algo=nocache",),
    "reuse": ("algo=reuse",),
    "fora": ("algo=fora",),
    "taylorseer": ("algo=taylorseer",),
    "taylorseer, last block": ("algo=taylorseer", "site=last_block"),
    "spectrum": ("algo=spectrum",),
    "teacache": ("algo=teacache",),
    "fbcache": ("algo=fbcache",),
    "easycache": ("algo=easycache",),
    "dicache": ("algo=dicache",),
    "hindsight": ("algo=hindsight",),
}
GROWS = ("spectrum",)  # keeps a row of every computed step


def rows(model: str) -> Iterator[list[object]]:
    """A line for each size and each method that fits the model."""
    for words in ((), SMALLER.get(model)):
        if words is not None:
            yield from filter(None, (row(model, words, method) for method in METHODS))


def row(model: str, words: tuple[str, ...], method: str) -> list[object] | None:
    """The line of a method; None if it does not fit the model."""
    config = "video" if "num_frames" in (ROOT / f"configs/model/{model}.yaml").read_text(encoding="utf-8") else "base"
    steps = models.steps(models.models()[model])
    try:
        made = settings(config, f"model={model}", *METHODS[method], f"num_inference_steps={steps}", *words)
        algorithm = build(made)
        with tempfile.TemporaryDirectory() as folder:
            cost = count(made, algorithm, job(made, Path(folder)), min(PASSES, steps))
    except UserError as error:
        print(f"{model} {method}: {error}", file=sys.stderr)
        return None
    planned = algorithm.computed_steps(steps, cost.starts)
    passes = min(PASSES, steps) if planned is None else len(planned)
    skipped = sorted(cost.skipped_steps or [])
    cache = cost.cache_bytes or 0
    sizes = f"{made.model.width} x {made.model.height}" + (
        f" x {made.model.num_frames}" if made.model.num_frames else ""
    )
    figures = [cost.weights_bytes, cost.working_bytes, cache, cache // passes if method in GROWS else 0, cost.full_step]
    return [model, sizes, method, steps, passes, *figures, skipped[len(skipped) // 2] if skipped else ""]


def write(model: str) -> None:
    """Compute the lines of a model anew; those of others stay."""
    kept = []
    if FILE.is_file():
        with FILE.open(newline="", encoding="utf-8") as file:
            kept = [line for line in list(csv.reader(file))[1:] if line[0] != model]
    lines = [*kept, *([str(cell) for cell in line] for line in rows(model))]
    with FILE.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *sorted(lines, key=lambda line: line[0])])


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.json")):
        write(name)
