"""Fetch weights of models, lists of prompts, and weights of metrics.

usage: python download.py [model=<names>] [prompts=<names>] [metrics=<names>] [--dry-run]

  model=<names>    {model}
                   go into the Hugging Face cache (HF_HOME); for a gated model accept its licence and hf auth login
  prompts=<names>  {prompts}
                   go into prompts/<name>.txt, one prompt a line, and their source into prompts/<name>.json
  metrics=<names>  {metrics}
                   go to the place where each metric expects them; metrics=as:freqca (or another paper that
                   evaluate.py --help names) stands for all that the paper's tables of pictures and clips need
  --dry-run        list the files with their sizes and whether they are missing, and fetch nothing

Separate names by commas; `all` stands for every name. Files that are here are not fetched again: after an interruption
the same command goes on. (An interrupted file of the hub starts again, because its client keeps only whole files.)

example: python download.py model=flux prompts=drawbench,coco metrics=lpips --dry-run
"""

import sys
from functools import partial

from spectrum_bench.commands.ending import say
from spectrum_bench.sampling.catalogue import KEYS, parse, read_catalogue
from spectrum_bench.sampling.downloads import run
from spectrum_bench.scoring.metrics import together, weights


def main(argv: list[str]) -> None:
    catalogue = read_catalogue(weights(), together())
    if not argv or {"-h", "--help"} & set(argv):
        print((__doc__ or "").strip().format(**{key: ", ".join(catalogue.names(key)) for key in KEYS}))
        return
    complain = partial(print, file=sys.stderr)
    try:
        failed = run(*parse(argv, catalogue), catalogue, say=say, complain=complain)
    except KeyboardInterrupt:
        complain("\nstopped: the same command goes on from here")
        raise
    if failed:
        raise SystemExit(1)
