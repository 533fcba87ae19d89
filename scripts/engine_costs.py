"""What bookkeeping and workers cost on this machine: python scripts/engine_costs.py [records] [workers] > table.md

records: made-up records of 12 methods on 10,000 prompts are written, resumed, gathered, scored and put into a table.
workers: whole runs on the miniature FLUX, of one process and of two workers of Ray.
Nothing else should run on the machine meanwhile.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
PROMPTS, METHODS = int(os.environ.get("PROMPTS", 10_000)), 12


def measured(function, *arguments) -> tuple[float, float, object]:
    """Seconds, peak memory in MiB and result of a call, which runs in its own process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, function, arguments).result()


def _measure(function, arguments):
    import spectrum_bench.reporting.page  # noqa: F401  imports are not measured

    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, result


# ---------------------------------------------------------------------------------------------------------------------


def make_up(folder: Path) -> int:
    """Make experiment directories as runs leave them, with small pictures of noise."""
    import fabricate
    import numpy as np

    prompts = [f"prompt number {i}" for i in range(PROMPTS)]
    pictures = np.random.default_rng(0).integers(0, 256, (PROMPTS, 8, 8, 3), np.uint8)
    fabricate.experiment(folder / "method0", prompts, pictures)
    for index in range(1, METHODS):
        noisy = fabricate.noisy(pictures, 2 + index, seed=index)
        fabricate.experiment(folder / f"method{index}", prompts, noisy, algo=f"method{index}", nfe=50 - 3 * index)
    return PROMPTS * METHODS


def record(folder: Path) -> int:
    from spectrum_bench.sampling.records import read_records, save_record

    for each in read_records(folder):
        save_record(folder, each)
    return PROMPTS


def score(folder: Path) -> int:
    from spectrum_bench.scoring.evaluation import evaluate
    from spectrum_bench.scoring.experiments import read_experiment

    reference, *others = (read_experiment(folder / f"method{i}") for i in range(METHODS))
    return len(list(evaluate(others, reference, "psnr")))


def resume(folder: Path) -> int:
    from spectrum_bench.sampling.records import finished

    return len(finished(folder))


def gather(folder: Path) -> int:
    from spectrum_bench.sampling.records import collect_records

    return len(collect_records(folder))


def report(folder: Path) -> int:
    from spectrum_bench.reporting.page import write_report
    from spectrum_bench.scoring.experiments import find_experiments, read_experiment

    experiments = [read_experiment(each) for each in find_experiments([folder])]
    reference = next(e for e in experiments if e.name == "method0")
    table = write_report(experiments, reference, folder / "report", baseline="method5")
    return len(table.rows)


def records(folder: Path) -> list[str]:
    measured(make_up, folder)
    one, rows = folder / "method1", []
    for what, function, where in (
        (f"{PROMPTS} records put on disk, each for good (fsync)", record, one),
        (f"a run begins again: which of {PROMPTS} samples are finished", resume, one),
        (f"a run ends: {PROMPTS} records gathered into one file", gather, one),
        (f"evaluate.py: PSNR of {METHODS - 1} x {PROMPTS} pictures of 8x8 pixels, intervals", score, folder),
        (f"report.py: {METHODS} rows of {PROMPTS} samples, intervals, differences, page", report, folder),
    ):
        seconds, memory, _ = measured(function, where)
        rows.append(f"| {what} | {seconds:.1f} | {memory:.0f} |")
    return ["| Records | s | most memory, MiB |", "|---|--:|--:|", *rows]


# ---------------------------------------------------------------------------------------------------------------------


def workers(folder: Path) -> list[str]:
    rows = []
    for samples in (1, 64):
        for count, name in ((1, "one process"), (2, "two workers of Ray")):
            words = [f"output_base_path={folder}", f"exp_name={count}-{samples}", f"total_prompt_num={samples}"]
            words += ["algo=nocache", f"ngpu={count}", "warmup_samples=0"]
            started = time.perf_counter()
            command = [sys.executable, ROOT / "src/text_to_image.py", *words]
            subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            rows.append((name, samples, time.perf_counter() - started))
    table = ["| Workers | samples | whole command, s |", "|---|--:|--:|"]
    return table + [f"| {name} | {samples} | {seconds:.1f} |" for name, samples, seconds in rows]


def main(chosen: list[str]) -> None:
    parts = {"records": records, "workers": workers}
    for name in chosen or parts:
        if name not in parts:
            raise SystemExit(f"error: {name} is none of {', '.join(parts)}")
        folder = Path(tempfile.mkdtemp())
        try:
            print("\n".join(parts[name](folder)), "\n", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
