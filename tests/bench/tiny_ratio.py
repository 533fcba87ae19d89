"""A skipped step on tiny-flux in this checkout, as a ratio to the same step in another one, for docs/costs.md:

    git worktree add /tmp/old 6771973
    python tests/bench/tiny_ratio.py /tmp/old rounds=5

One process for each checkout and round, by turns. Time is the thread's own, so that other work on the machine counts
less: the median over a process's skipped steps, then the median over the rounds' ratios.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[2]
METHODS = ("spectrum", "reuse")
MEASURE = """
import hashlib, json, statistics, sys, time
from functools import partial

sys.path.insert(0, "src")
import torch
from diffusers import DiffusionPipeline
from spectrum_bench import forecasters, schedules
try:
    from spectrum_bench.caching.session import cached
    from spectrum_bench.caching.sites.stack import LastBlock
except ImportError:  # before the package had folders
    from spectrum_bench.cache import cached
    from spectrum_bench.sites import LastBlock

torch.set_num_threads(1)
pipe = DiffusionPipeline.from_pretrained("assets/tiny/flux", dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
spectrum = partial(forecasters.spectrum, degree=4, ridge=0.1, blend=0.5, steps=50)
forecaster = {"spectrum": spectrum, "reuse": forecasters.reuse}[sys.argv[1]]
mask = partial(schedules.adaptive_window, window=2, flex=0.75, warmup=5)
skipped = []
for sample in range(3):  # the first warms up
    with cached(pipe, schedule=mask, forecaster=forecaster, site=LastBlock(), num_steps=50) as session:
        at = [time.thread_time()]
        def done(pipe, step, timestep, inputs):
            now = time.thread_time()
            if sample and step not in session.computed_steps:
                skipped.append(now - at[0])
            inputs = session.callback(pipe, step, timestep, inputs)
            at[0] = time.thread_time()
            return inputs
        out = pipe("a large red ring on a gray background", height=64, width=64, num_inference_steps=50,
            max_sequence_length=16, generator=torch.Generator().manual_seed(0), output_type="latent",
            callback_on_step_end=done).images
digest = hashlib.sha256(out.float().numpy().tobytes()).hexdigest()
print(json.dumps([statistics.median(skipped), digest, len(session.computed_steps)]))
"""


def skipped_step(checkout: Path, method: str) -> list:
    """Seconds of a skipped step, the latents' SHA-256, and the number of computed steps."""
    words = [sys.executable, "-c", MEASURE, method]
    done = subprocess.run(words, cwd=checkout, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    other, rounds = Path(argv[0]), int(argv[1].partition("=")[2]) if len(argv) > 1 else 5
    print("| tiny-flux, 50 steps | passes | ms then | ms now | ratio | latents |\n|---|--:|--:|--:|--:|---|")
    for method in METHODS:
        pairs = [(skipped_step(other, method), skipped_step(HERE, method)) for _ in range(rounds)]
        then, now = (median(pair[i][0] for pair in pairs) * 1e3 for i in (0, 1))
        ratio, (old, new) = median(b[0] / a[0] for a, b in pairs), pairs[0]
        same = "the same bits" if old[1] == new[1] else "other bits"
        print(f"| {method} | {new[2]} | {then:.3f} | {now:.3f} | {ratio:.2f} | {same} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
