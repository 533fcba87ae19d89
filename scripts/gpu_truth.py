"""What caching costs on a real GPU, in one run of minutes: python scripts/gpu_truth.py budget=480

Full-size architectures with random weights (configs/architectures), random prompt embeddings, no text encoders, no VAE:
times and memory are those of the real models, pictures are not made. Every result is one line of JSON in
<out>/gpu_truth.jsonl, written at once, and one short line on the screen. Needs torch, diffusers and what they bring.

budget=480     seconds; a section that would not fit in what is left of them is skipped and says so
out=FOLDER     default: $OUT, else outputs/gpu_truth
sections=a,b   of ceilings, forecast, flux, profiler, sd3, wan, hunyuan, compiled, fp8, sdxl; default: all
label=TEXT     a note for the first line
quick=true     the package's own step: no other caching code beside it on FLUX, no caching per module, six steps of Wan
simulate=true  every section on the CPU with tiny widths: tests the script, measures nothing
"""

import os
import sys

os.environ.setdefault("TRITON_INTERPRET", str(int("simulate=true" in sys.argv)))  # read when triton is imported
os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")

from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

from gpu import sections
from gpu.forecasts import ceilings, compile_forecasts, forecast
from gpu.lines import Run, environment
from gpu.profiles import profiler

SECTIONS = {  # in order of worth, with the seconds below which there is no point in beginning
    "ceilings": (ceilings, 5),
    "forecast": (forecast, 20),
    "flux": (sections.flux, 40),
    "profiler": (profiler, 15),
    "sd3": (sections.sd3, 20),
    "wan": (sections.wan, 30),
    "hunyuan": (sections.hunyuan, 30),
    "compiled": (sections.compiled, 60),
    "fp8": (sections.fp8, 60),
    "sdxl": (sections.sdxl, 12),
}
DEFAULTS = {
    "budget": "480",
    "out": "",
    "sections": ",".join(SECTIONS),
    "simulate": "false",
    "label": "",
    "quick": "false",
}


def main(argv: list[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return
    options = dict(DEFAULTS)
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in DEFAULTS:
            sys.exit(f"error: no option {word}: there is {', '.join(f'{k}=' for k in DEFAULTS)} (see --help)")
        options[key] = value
    chosen = options["sections"].split(",")
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        sys.exit(f"error: no section {unknown[0]}: there is {', '.join(SECTIONS)}")
    if options["simulate"] != "true" and not torch.cuda.is_available():
        sys.exit("error: no GPU here: add simulate=true to try the script itself")
    run = Run(options)
    run.wants_profiler = "profiler" in chosen
    environment(run, options["label"])
    run.attempt("environment", 0, partial(compile_forecasts, run))
    if run.simulate:
        torch.set_num_threads(1)
    for name in SECTIONS:
        if name in chosen:
            function, seconds = SECTIONS[name]
            run.attempt(name, seconds, partial(function, run))
            run.device.free()
    run.line("end", f"{run.left:.0f} s left of {run.budget:.0f}", seconds=run.budget - run.left)


if __name__ == "__main__":
    main(sys.argv[1:])
