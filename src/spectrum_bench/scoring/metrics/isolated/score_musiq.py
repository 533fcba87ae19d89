"""MUSIQ of every picture in a manifest, as pyiqa computes it.

score_musiq.py <manifest> <results> <musiq_koniq_ckpt-e95806b9.pth>

Runs by itself: pyiqa brings some forty packages, and asks for other versions than requirements.txt.
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
# # Trained on KonIQ-10k by Google Research (Apache-2.0), ported by pyiqa, whose own code is under PolyForm
# # Noncommercial 1.0.0. Size and checksum as several projects have pinned them; its first 8 digits are in the name.
# [[tool.spectrum-bench.weights]]
# url = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_koniq_ckpt-e95806b9.pth"
# to = "{torch}/hub/pyiqa"
# size = 108610983
# sha256 = "e95806b9eae5f3814c410f574ba8e552362bd5bc63d758ed5b97860f5d6185aa"
# ///

import json
import sys
from typing import Any

import torch


def load(weights: str) -> Any:
    """pyiqa's "musiq" with these weights, which it would otherwise fetch, and unpickle without restriction."""
    import pyiqa
    from pyiqa.archs.arch_util import clean_state_dict

    metric = pyiqa.create_metric("musiq", pretrained=False)
    try:
        metric.net.load_state_dict(clean_state_dict(torch.load(weights, map_location="cpu", weights_only=True)))
    except RuntimeError as error:
        raise SystemExit(f"{weights} does not fit ({' '.join(str(error).split())[:120]}); download it again") from None
    return metric


def main(manifest: str, results: str, weights: str) -> None:
    metric = load(weights)
    with open(manifest, encoding="utf-8") as lines, open(results, "a", encoding="utf-8") as out:
        for line in lines:
            sample = json.loads(line)
            result: dict[str, Any] = {"id": sample["id"]}
            try:
                with torch.inference_mode():
                    result["musiq"] = float(metric(sample["path"]))
            except Exception as error:  # a bad sample must not stop the others
                result["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
