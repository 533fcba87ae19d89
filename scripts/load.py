"""What large runs cost in time and memory here: python scripts/load.py [part ...] [key=value ...] > table.md

records: made-up records of methods=12 on prompts=10000 are written, resumed, gathered, scored and put into a table; a
         page of page=200 prompts; lines=1000000 records of one run are read.
resume:  the whole command of a run whose finished=5000 samples are finished, beside one of 1.
workers: whole runs on the miniature FLUX, of one process and of two workers of Ray.
Nothing else should run on the machine meanwhile. docs/limits.md holds what it printed.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
USUAL = {"prompts": "10000", "methods": "12", "lines": "1000000", "page": "200", "finished": "5000"}
WORDS = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)  # processes that are spawned have them too
PROMPTS, METHODS, LINES, PAGE, FINISHED = (int(WORDS.get(key, number)) for key, number in USUAL.items())


def machine() -> str:
    """The processor, its cores and the commit."""
    from spectrum_bench.sampling.clock import environment

    here = environment("cpu", 1)
    return f"{here['device'].split(',')[0]}, {os.cpu_count()} cores, commit {here['git_sha']}"


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
    from spectrum_bench.sampling.records import finished, kept_records

    return len(finished(folder, kept_records(folder)))


def gather(folder: Path) -> int:
    from spectrum_bench.sampling.records import collect_records

    return len(collect_records(folder))


def report(folder: Path) -> int:
    from spectrum_bench.reporting.page import write_report
    from spectrum_bench.scoring.experiments import read_experiment

    reference, *experiments = (read_experiment(folder / f"method{i}") for i in range(METHODS))
    table = write_report(experiments, reference, folder / "report", baseline="method1")
    return len(table.rows)


def make_up_page(folder: Path) -> int:
    """Experiments whose pictures have the size of small photographs, scored."""
    import fabricate

    prompts = fabricate.captions(PAGE)
    pictures = fabricate.pictures(prompts, side=256)
    fabricate.experiment(folder / "page/method0", prompts, pictures)
    for index in range(1, METHODS):
        noisy = fabricate.noisy(pictures, 2 + index, seed=index)
        fabricate.experiment(folder / f"page/method{index}", prompts, noisy, algo=f"method{index}", nfe=50 - 3 * index)
    return score(folder / "page")


def page(folder: Path) -> int:
    from spectrum_bench.reporting.page import write_report
    from spectrum_bench.scoring.experiments import read_experiment

    reference, *others = (read_experiment(folder / f"page/method{i}") for i in range(METHODS))
    write_report(others, reference, folder / "page/report", rows=PAGE)
    return (folder / "page/report/index.html").stat().st_size


def make_up_lines(folder: Path) -> int:
    """The records of one large run."""
    record = json.loads((folder / "method1/records.jsonl").read_text().split("\n")[0])
    (folder / "lines").mkdir()
    with open(folder / "lines/records.jsonl", "w") as file:
        for i in range(LINES):
            record |= {"id": f"{i:016x}", "prompt_index": i, "sample": f"samples/{i:016x}.png", "prompt": f"prompt {i}"}
            file.write(json.dumps(record) + "\n")
    return (folder / "lines/records.jsonl").stat().st_size


def count_lines(folder: Path) -> int:
    from spectrum_bench.sampling.records import read_records

    return len(read_records(folder / "lines"))


def records(folder: Path) -> list[str]:
    measured(make_up, folder)
    measured(make_up_page, folder)
    size = measured(make_up_lines, folder)[2]
    one, rows = folder / "method1", []
    for what, function, where in (
        (f"{PROMPTS:,} records put on disk, each for good (fsync)", record, one),
        (f"a run begins again: which of {PROMPTS:,} samples are finished", resume, one),
        (f"a run ends: {PROMPTS:,} records gathered into one file", gather, one),
        (f"evaluate.py: PSNR of {METHODS - 1} x {PROMPTS:,} pictures of 8x8 pixels, intervals", score, folder),
        (f"report.py: {METHODS} rows of {PROMPTS:,} samples, intervals, differences, page", report, folder),
        (f"report.py: a page with all pictures of {PAGE} prompts x {METHODS} rows, 256x256 pixels", page, folder),
        (f"{LINES:,} records read, {size / 1e6:.0f} MB", count_lines, folder),
    ):
        seconds, memory, _ = measured(function, where)
        rows.append(f"| {what} | {seconds:.1f} | {memory:.0f} |")
    return ["| Records | s | most memory, MiB |", "|---|--:|--:|", *rows]


# ---------------------------------------------------------------------------------------------------------------------


def command(folder: Path, *words: str) -> float:
    """Seconds of a whole run on the miniature FLUX."""
    places = [f"output_base_path={folder}", "exp_name=run", f"prompt_file={folder}/prompts.txt", "warmup_samples=0"]
    line = [sys.executable, ROOT / "src/text_to_image.py", "algo=spectrum", "num_inference_steps=4", *places, *words]
    started = time.perf_counter()
    subprocess.run(line, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - started


def finish(folder: Path) -> int:
    """Give all prompts of a run a sample and a record, copies of the first one's under ids of their own."""
    import yaml

    from spectrum_bench.sampling.jobs import make_jobs
    from spectrum_bench.sampling.prompts import read_prompt_file
    from spectrum_bench.sampling.records import read_records, save_record

    home = folder / "run"
    config = yaml.safe_load((home / "config.yaml").read_text())
    (home / "config.yaml").write_text(yaml.safe_dump(config | {"total_prompt_num": None}))
    who = {key: value for key, value in config["identity"].items() if key not in ("seed", "prompts_sha256")}
    (first,) = read_records(home)
    for job in make_jobs(read_prompt_file(folder / "prompts.txt").lines, config["seed"], who)[1:]:
        sample = f"samples/{job.id}.png"
        (home / sample).write_bytes((home / first.sample).read_bytes())
        save_record(home, replace(first, id=job.id, prompt_index=job.prompt_index, prompt=job.prompt, sample=sample))
    return FINISHED


def resume_command(folder: Path) -> list[str]:
    (folder / "prompts.txt").write_text("".join(f"a red ring {i}\n" for i in range(FINISHED)))
    command(folder, "total_prompt_num=1")
    one = command(folder, "total_prompt_num=1")
    measured(finish, folder)
    all_of_them = command(folder)
    rows = [f"| 1 sample is finished | {one:.1f} |", f"| {FINISHED:,} samples are finished | {all_of_them:.1f} |"]
    return ["| The command of a run that has nothing to do | s |", "|---|--:|", *rows]


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


def main(words: list[str]) -> None:
    parts = {"records": records, "resume": resume_command, "workers": workers}
    chosen = [word for word in words if "=" not in word]
    if wrong := [*(set(chosen) - parts.keys()), *(WORDS.keys() - USUAL.keys())]:
        raise SystemExit(f"error: {wrong[0]} is none of {', '.join(parts)}, nor a key of {', '.join(USUAL)}")
    print(measured(machine)[2], "\n", flush=True)
    for name in chosen or parts:
        folder = Path(tempfile.mkdtemp())
        try:
            print("\n".join(parts[name](folder)), "\n", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
