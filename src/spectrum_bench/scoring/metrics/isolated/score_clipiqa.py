"""CLIP-IQA of every picture in a manifest, as pyiqa computes it.

score_clipiqa.py <manifest> <results> <RN50.pt>

Runs by itself, in the environment of score_musiq.py, which has the same packages.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.14.1",
#   "torchvision==0.29.1",
#   "numpy==2.2.6",
#   "pillow==12.3.0",
#   "setuptools==80.10.2",  # the package of CLIP, which pyiqa asks for, imports pkg_resources
#   "pyiqa==0.1.16",
#   "timm==1.0.31",
#   "transformers==5.23.0",
# ]
#
# # OpenAI's CLIP (MIT), at the place where pyiqa looks. The checksum is in the URL, the size as others have pinned it.
# [[tool.spectrum-bench.weights]]
# url = "https://openaipublic.azureedge.net/clip/models/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
# to = "{torch}/hub/clip"
# size = 255827503
# sha256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
# ///

import json
import sys
from typing import Any

import torch


def load(weights: str) -> Any:
    """pyiqa's "clipiqa" with these weights: by a path, because those that it knows by name it may fetch."""
    import pyiqa

    try:
        return pyiqa.create_metric("clipiqa", backbone=weights)
    except (RuntimeError, KeyError, ValueError, EOFError) as error:  # of a file that is damaged, or another network's
        raise SystemExit(f"{weights} does not fit ({' '.join(str(error).split())[:120]}); download it again") from None


def main(manifest: str, results: str, weights: str) -> None:
    metric = load(weights)
    with open(manifest, encoding="utf-8") as lines, open(results, "a", encoding="utf-8") as out:
        for line in lines:
            sample = json.loads(line)
            result: dict[str, Any] = {"id": sample["id"]}
            try:
                with torch.inference_mode():
                    result["clipiqa"] = float(metric(sample["path"]))
            except Exception as error:  # a bad sample must not stop the others
                result["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
