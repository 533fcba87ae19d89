"""Experiment directories made up for tests: pictures of the miniature world, noise for an algorithm."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml
from forked import Command
from PIL import Image

from spectrum_bench.miniature import world
from spectrum_bench.sampling.jobs import make_jobs
from spectrum_bench.sampling.prompts import Prompt
from spectrum_bench.sampling.records import Record

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = [
    "<script>alert(1)</script>",
    "</textarea><img src=x onerror=alert(1)>",
    "\"double\" 'single' `back` &amp; \\ $x_1$ 100% #5 {a} ~ ^",
    "a sloth \N{SLOTH} on the \N{MILKY WAY}, \N{RIGHT-TO-LEFT OVERRIDE}reversed",
    "../../etc/passwd | a/b\\c",
    "very long " * 500,
]


COST = {"full_step": 2 * 10**12, "skipped_steps": [10**11], "cache_bytes": 0, "weights_bytes": 1, "working_bytes": 1}
PEERS = COST | {"skipped_steps": None, "cache_bytes": None}


def captions(count: int, seed: int = 0) -> list[str]:
    return [str(s) for s in world.draw_scenes(np.random.default_rng(seed), count, held=True)]


def pictures(prompts: list[str], side: int = world.SIDE) -> np.ndarray:
    """One (side, side, 3) uint8 picture a prompt; prompts outside the grammar get a random scene."""
    rng = np.random.default_rng(1)
    scenes = [world.parse(p) or world.draw_scene(rng) for p in prompts]
    drawn = (world.render(scenes, rng)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side))) for p in drawn])


def noisy(images: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """Gaussian noise of `sigma` grey levels."""
    noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
    return (images + noise).clip(0, 255).round().astype(np.uint8)


def experiment(
    folder: Path,
    prompts: list[str],
    images: np.ndarray,
    algo: str = "nocache",
    nfe: int = 50,
    steps: int = 50,
    seed: int = 0,
    model: dict | None = None,
    **fields,
) -> Path:
    """Write an experiment directory as a run does. `fields` replace fields of every record."""
    model = {"name": "tiny-flux", "judge": None} | (model or {})
    config = {
        "exp_name": folder.name,
        "algo": {"name": algo},
        "model": model,
        "num_inference_steps": steps,
        "seed": seed,
    }
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    skipped = None if nfe == steps else 0.002
    records = []
    for job, image in zip(make_jobs([Prompt(prompt) for prompt in prompts], seed, {"algo": algo}), images, strict=True):
        total = 0.1 + 0.02 * nfe + 0.001 * job.prompt_index
        latency = {
            "text": 0.01,
            "denoise": total - 0.03,
            "decode": 0.02,
            "total": total,
            "full_step": 0.02,
            "skipped_step": skipped,
        }
        sample = f"samples/{job.id}.png"
        Image.fromarray(image).save(folder / sample)
        record = Record(
            **asdict(job) | {"inputs": {}},
            sample=sample,
            model=model["name"],
            algo=algo,
            schedule="full" if nfe == steps else "adaptive_window(window=2.0, flex=0.75, warmup=5)",
            forecaster="reuse" if nfe == steps else f"{algo}(degree=4)",
            site="last_block",
            num_inference_steps=steps,
            computed_steps=list(range(nfe)),
            nfe=nfe,
            latency=latency,
            peak_memory_bytes=None,
            cache_bytes=0 if nfe == steps else 112 * 1024,
            device="test machine",
            versions={"torch": "2.14.1"},
            git_sha="0123456789abcdef",
        )
        records.append(asdict(record) | fields)
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    (folder / "cost.json").write_text(json.dumps(COST))
    (folder / "records.jsonl").write_text(lines, encoding="utf-8")
    return folder


def run_script(script: str, *arguments) -> subprocess.CompletedProcess:
    """Run an entry script as a user does."""
    process = Command(ROOT / "src" / script, *arguments, cwd=ROOT)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_python(*arguments) -> subprocess.CompletedProcess:
    """Run this Python on `arguments` in the repository's root, with src/ to import from."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
