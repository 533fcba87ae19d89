"""Every algorithm of configs/algo on every shipped miniature: which steps it computed and how far from the plain run
its sample was, kept below tests/golden. A change of the code that moves one of these numbers is a change of results.

    python tests/golden.py                     measure all anew and write tests/golden/<miniature>.json
    python tests/golden.py tiny-flux           of this miniature alone

The files have one line an algorithm, so that `git diff` shows what moved.
"""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from helpers import paired, settings

from spectrum_bench.commands.compose import build
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.models import load_pipeline
from spectrum_bench.sampling.sampler import Figures, Sampler
from spectrum_bench.sampling.settings import RunSettings

GOLDEN = ROOT / "tests" / "golden"
ALGOS = sorted(p.stem for p in (ROOT / "configs" / "algo").glob("*.yaml"))
MINIATURES = sorted(f"tiny-{p.parent.name}" for p in (ROOT / "assets/tiny").glob("*/model_index.json"))

STEPS, SEED = 20, 0
STEPS_OF = {"tiny-hunyuan": 12, "tiny-wan": 12}  # clips take three times as long
PICTURE = "a large red ring on a gray background"
CLIP = "a large green cross moving left on a cream background"
CAP = 100.0  # dB, of identical pixels
# Defaults, but where they would skip none of so few steps, or rounding decides: SpeCa's error is a mean of ratios,
# and its smallest denominators move it manifold. Here its forecasts pass the test up to step 9 and fail from then on.
WORDS = {"sencache": ["schedule.threshold=1"], "speca": ["schedule.threshold=1e40", "schedule.decay=1e-80"]}
WORDS |= {algo: ["algo.passes=8"] for algo in ("hindsight", "meancache")}
# The shipped constants are of 50 steps. These are of outputs that drift: each the one before and a new part.
DRIFT = [[1, *[0.1] * step] for step in range(STEPS)]
for name in MINIATURES:
    WORDS["l2p", name] = ["algo.passes=8", f"algo.forecaster.outputs={DRIFT[: STEPS_OF.get(name, STEPS)]}"]
WORDS |= {("fbcache", m): ["schedule.threshold=0.12"] for m in ("tiny-flux", "tiny-sd3")}
WORDS["easycache", "tiny-sd3"] = ["schedule.threshold=0.12"]
WORDS["diffusers_fbcache", "tiny-flux"] = ["site.arguments.threshold=0.12"]
WORDS |= {(a, "tiny-flux"): ["site.arguments.residual_diff_threshold=0.12"] for a in ALGOS if "cachedit" in a}
for name in STEPS_OF:
    WORDS |= {(a, name): ["site.arguments.residual_diff_threshold=0.5"] for a in ALGOS if "cachedit" in a}
    WORDS |= {(a, name): ["schedule.threshold=0.5"] for a in ("cgtaylor", "easycache", "fbcache")}
    WORDS["diffusers_fbcache", name] = ["site.arguments.threshold=0.5"]
FIRST_WORDS = 8  # of a refusal


@cache
def pipeline(model: str):
    return load_pipeline(settings(f"model={model}").model, "cpu")


def chosen(model: str, algo: str, *more: str) -> RunSettings:
    steps = f"num_inference_steps={STEPS_OF.get(model, STEPS)}"
    return paired(model, algo, steps, *WORDS.get(algo, []), *WORDS.get((algo, model), []), *more)


def sample(model: str, algo: str, *more: str) -> tuple[np.ndarray, Figures]:
    """The pixels, uint8, of one sample, and its figures. All that the tests of golden values ask of the package.

    Raises:
        UserError: the algorithm does not fit the model.
    """
    given = chosen(model, algo, *more)
    job = Job("golden", 0, CLIP if given.model.fps else PICTURE, SEED)
    return Sampler.of(pipeline(model), build(given), given).sample(job)


@cache
def plain(model: str) -> np.ndarray:
    return sample(model, "nocache")[0]


def psnr(pixels: np.ndarray, reference: np.ndarray) -> float:
    """In dB, of a clip the mean over its frames. Not the package's: it is to be judged as well."""
    error = ((pixels.astype(float) - reference.astype(float)) ** 2).mean((-3, -2, -1))
    return float(np.minimum(CAP, 10 * np.log10(255**2 / np.maximum(error, 1e-12))).mean())


def quadrants(pixels: np.ndarray) -> list[float]:
    """Mean red, green and blue of each quarter of a picture, of a clip's first, middle and last frame: what the plain
    run shows, to which all distances are measured."""
    frames = pixels[None] if pixels.ndim == 3 else pixels[[0, len(pixels) // 2, -1]]
    count, height, width, _ = frames.shape
    means = frames.reshape(count, 2, height // 2, 2, width // 2, 3).mean((2, 4))
    return [round(float(x), 1) for x in means.ravel()]


def measure(model: str, algo: str) -> dict:
    """One line of a file: computed_steps, cache_bytes, psnr against the plain run, of the plain run itself its
    quadrants; or the first words of a refusal."""
    try:
        pixels, figures = sample(model, algo)
    except UserError as error:
        return {"refused": " ".join(str(error).split()[:FIRST_WORDS])}
    line = {"computed_steps": figures.computed_steps, "cache_bytes": figures.cache_bytes}
    line["psnr"] = round(psnr(pixels, plain(model)), 2)
    return line | ({"quadrants": quadrants(pixels)} if algo == "nocache" else {})


def read(model: str) -> dict[str, dict]:
    """What is on record of a miniature, by algorithm; nothing if nothing is."""
    path = GOLDEN / f"{model}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(model: str, lines: dict[str, dict]) -> None:
    GOLDEN.mkdir(exist_ok=True)
    text = ",\n".join(f"{json.dumps(algo)}: {json.dumps(lines[algo], sort_keys=True)}" for algo in sorted(lines))
    (GOLDEN / f"{model}.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:] or MINIATURES:
        write(name, {algo: measure(name, algo) for algo in ALGOS})
        print(GOLDEN / f"{name}.json")
