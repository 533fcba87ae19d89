"""Inception-v3's features of every picture in a manifest, as clean-fid makes them.

score_fid.py <manifest> <results> <inception-2015-12-05.pt>

A result is "features": 2048 little-endian float32 in base64. Runs by itself, in an environment of its own: clean-fid
resizes with Pillow, and scores change with its version.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.14.1",
#   "torchvision==0.29.1",
#   "numpy==2.2.6",
#   "scipy==1.17.1",
#   "pillow==12.3.0",
#   "requests==2.34.2",
#   "clean-fid==0.1.35",
# ]
#
# # The Inception of StyleGAN2-ADA's metrics, which clean-fid reads. Size and checksum as several projects have pinned
# # them. It is archived by TorchScript; NVIDIA's page names no licence of this file.
# [[tool.spectrum-bench.weights]]
# url = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
# to = "~/.cache/cleanfid"
# size = 95607719
# sha256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
# ///

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

AT_ONCE = 32  # pictures


def resized(path: str, resize: Any) -> Any:
    """(3, 299, 299) float32 from 0 to 255."""
    with Image.open(path) as image:
        return torch.from_numpy(resize(np.asarray(image.convert("RGB")))).permute(2, 0, 1)


def main(manifest: str, results: str, weights: str) -> None:
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, resize = InceptionV3W(str(Path(weights).parent), download=False).to(device).eval(), build_resizer("clean")
    samples = [json.loads(line) for line in Path(manifest).read_text(encoding="utf-8").splitlines()]
    with open(results, "a", encoding="utf-8") as out, torch.inference_mode():
        for start in range(0, len(samples), AT_ONCE):
            lines: dict[str, dict[str, str]] = {}
            pictures = {}
            for sample in samples[start : start + AT_ONCE]:
                try:
                    pictures[sample["id"]] = resized(sample["path"], resize)
                except Exception as error:  # a bad sample must not stop the others
                    lines[sample["id"]] = {"error": f"{type(error).__name__}: {error}"}
            features = model(torch.stack(list(pictures.values())).to(device)).cpu().numpy() if pictures else ()
            for name, vector in zip(pictures, features, strict=True):
                lines[name] = {"features": base64.b64encode(vector.astype("<f4").tobytes()).decode()}
            for name, line in lines.items():
                print(json.dumps({"id": name} | line), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
