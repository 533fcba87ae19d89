"""Every caching hook of diffusers and cache-dit on every small random pipeline.

usage: python scripts/conformance.py [<folder>]

Writes <folder>/findings.csv, one line a check, and <folder>/table.md, one row a hook and one column a check. What the
folder has is not made again. By default it is results/studies/conformance.
"""

import csv
import logging
import sys
from pathlib import Path

import diffusers
import pandas as pd
import torch

from spectrum_bench.commands.conformance import OPTIONS, RANDOM, open_bench
from spectrum_bench.conformance.bench import Bench
from spectrum_bench.conformance.checks import CHECKS, check, check_all

DBCACHE = "cachedit:DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold={})"
MASK = "steps_computation_mask=[1, 1, 0, 1, 0, 0, 1, 0], steps_computation_policy='static'"
TAYLOR = "cache_interval=3, disable_cache_before_step=2, taylor_factors_dtype='float32'"
ALWAYS = "(-1, 2000)"  # a range of timesteps
BUT_THE_FIRST = "(-1, 960)"
FASTER = f"spatial_attention_timestep_skip_range={BUT_THE_FIRST}"
PAB = f"spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range={ALWAYS}"
# {} is the first of THRESHOLDS at which some of eight steps are skipped; random weights move more than trained ones.
CACHES = {
    "FirstBlockCache": "diffusers:FirstBlockCacheConfig(threshold={})",
    "MagCache": "diffusers:MagCacheConfig(threshold=0.5, retention_ratio=0.25, "
    "mag_ratios=[1.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])",
    "TaylorSeer": f"diffusers:TaylorSeerCacheConfig({TAYLOR})",
    "TaylorSeer, lite": f"diffusers:TaylorSeerCacheConfig({TAYLOR}, use_lite_mode=True)",
    "PyramidAttentionBroadcast": f"diffusers:PyramidAttentionBroadcastConfig({PAB})",
    "FasterCache, guided": f"diffusers:FasterCacheConfig({FASTER}, tensor_format='BFCHW', "
    f"unconditional_batch_timestep_skip_range={BUT_THE_FIRST}, unconditional_batch_skip_range=3)",
    "FasterCache, distilled": f"diffusers:FasterCacheConfig({FASTER}, is_guidance_distilled=True)",
    "SeaCache": "diffusers:SeaCacheConfig(threshold={})",
    "TextKVCache": "diffusers:TextKVCacheConfig()",
    "DBCache": DBCACHE,
    "DBCache, mask": f"cachedit:DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, {MASK})",
    "DBCache, TaylorSeer": f"{DBCACHE}+TaylorSeerCalibratorConfig(taylorseer_order=1)",
    "DBCache, FoCa": f"{DBCACHE}+FoCaCalibratorConfig()",
    "DBCache, DMD": f"{DBCACHE}+DMDCalibratorConfig()",
    "DBPrune": DBCACHE.replace("DBCache", "DBPrune"),
}
GUIDED = ("FasterCache, guided",)
# The one pipeline on which a hook is compiled and offloaded: FLUX, or one on which the hook skips.
ONCE = ("compiled", "offloaded")
MORE = {"SeaCache": "wan", "FasterCache, guided": "cogvideox"}
FIGURES = ("saves work", "memory", "waits")  # which cannot fail
THRESHOLDS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
COLUMNS = ("hook", "pipeline", "check", "verdict", "seen")
Line = tuple[str, ...]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    lines = read(folder / "findings.csv")
    for cache, words in CACHES.items():
        for pipeline in RANDOM:
            once = ONCE if pipeline == MORE.get(cache, "flux") else ()
            made = {line[2] for line in lines if line[:2] == (cache, pipeline)}
            lacking = [name for name in once if name not in made]
            if made and not lacking:
                continue
            bench = under(words, pipeline, cache in GUIDED, bool(once))
            findings = [check(bench, name) for name in lacking] if made else check_all(bench)
            lines += [(cache, pipeline, each.check, each.verdict, each.words) for each in findings]
            write(folder / "findings.csv", lines)
    (folder / "table.md").write_text(table(lines), encoding="utf-8")


def under(words: str, pipeline: str, guided: bool, more: bool) -> Bench:
    """A cache on a small pipeline, at the lowest threshold at which it skips."""
    for threshold in THRESHOLDS:
        options = {"pipeline": f"random:{pipeline}", "cache": words.format(threshold)}
        options |= {"guided": str(guided).lower(), "compile": str(more).lower(), "offload": str(more).lower()}
        bench = open_bench({**OPTIONS, **options})
        if "{}" not in words or check(bench, "attaches").verdict != "ok" or check(bench, "skips").verdict == "ok":
            break
    bench.broken = False  # the checks say anew, and say why
    return bench


def read(path: Path) -> list[Line]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [tuple(line) for line in csv.reader(file)][1:]


def write(path: Path, lines: list[Line]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])


def table(lines: list[Line]) -> str:
    """On how many pipelines each check of a hook failed, of those where it applies; dots: on none."""
    frame = pd.DataFrame(lines, columns=COLUMNS)
    frame = frame[(frame["verdict"] != "-") & ~frame["check"].isin(FIGURES)]

    def cell(verdicts: pd.Series) -> str:
        failed = (verdicts == "FAILED").sum()
        return f"{failed} of {len(verdicts)}" if failed else "."

    counts = frame.groupby(["hook", "check"])["verdict"].apply(cell).unstack("check")
    checks = [check for check in CHECKS if check in counts.columns]
    return f"{counts.reindex(index=CACHES, columns=checks).fillna('-').to_markdown()}\n"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/studies/conformance"))
