"""Fetch what the benchmark needs: weights of models, lists of prompts, weights of metrics.

usage: python download.py [model=<names>] [prompts=<names>] [metrics=<names>] [--dry-run]

  model=<names>    {model}
                   into the Hugging Face cache (HF_HOME); a gated one asks for its licence and for hf auth login
  prompts=<names>  {prompts}
                   into prompts/<name>.txt, one prompt a line, and where it is from into prompts/<name>.json
  metrics=<names>  {metrics}
                   to where each metric looks for its weights
  --dry-run        list the files with their sizes, here or missing, and fetch nothing

Names are separated by commas; all stands for all of them. What is here is not fetched again: after an interruption the
same command goes on. (A file of the hub that was cut off half-way starts again, as its client keeps whole files only.)

example: python download.py model=flux prompts=drawbench,coco metrics=lpips --dry-run
"""

import sys
from functools import partial

from spectrum_bench.sampling.catalogue import KEYS, parse, read_catalogue
from spectrum_bench.sampling.downloads import run
from spectrum_bench.scoring.metrics import weights


def main(argv: list[str]) -> None:
    catalogue = read_catalogue(weights())
    if not argv or {"-h", "--help"} & set(argv):
        print((__doc__ or "").strip().format(**{key: ", ".join(catalogue.names(key)) for key in KEYS}))
        return
    complain = partial(print, file=sys.stderr)
    try:
        failed = run(*parse(argv, catalogue), catalogue, say=print, complain=complain)
    except KeyboardInterrupt:
        complain("\nstopped: the same command goes on from here")
        raise
    if failed:
        raise SystemExit(1)
