"""VBench's dimensions of every clip in a manifest.

score_vbench.py <manifest> <results> <VBENCH_CACHE_DIR> <dimension> ...

Runs by itself, by VBench's Python interface, mode custom_input: its packages cannot live beside the transformers of
requirements.txt.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.14.1",
#   "torchvision==0.29.1",
#   "numpy==1.26.4",
#   "setuptools==80.10.2",  # some of its packages import pkg_resources
#   "vbench==0.1.5",
#   "transformers==4.33.2",
#   "tokenizers==0.13.3",
#   "huggingface_hub==0.36.2",
#   "timm==1.0.12",
#   "pyiqa==0.1.10",
#   "openai-clip==1.0.1",
#   "decord==0.6.0",
#   "opencv-python==4.11.0.86",
#   "scikit-image==0.26.0",
#   "scipy==1.17.1",
#   "omegaconf==2.4.0",
#   "fairscale==0.4.13",
#   "imageio==2.38.1",
#   "pillow==13.0.0",
# ]
#
# # The seven quality dimensions of VBench 0.1.5, laid out for its local=True; temporal_flickering needs no weights.
# # The URLs are those of vbench/utils.py, but for RAFT's: the same file outside its zip.
#
# # subject_consistency: DINO's code, which torch.hub runs. Size and sha256 computed from the files of that commit.
# [[tool.spectrum-bench.weights]]
# url = "https://raw.githubusercontent.com/facebookresearch/dino/7c446df5b9f45747937fb0d72314eb9f7b66930a/hubconf.py"
# to = "{vbench}/dino_model/facebookresearch_dino_main"
# size = 5653
# sha256 = "fa80babf82c71d2123e23b05061eb1991a1fbc9877238f250b2a25023e910f72"
#
# [[tool.spectrum-bench.weights]]
# url = "https://raw.githubusercontent.com/facebookresearch/dino/7c446df5b9f45747937fb0d72314eb9f7b66930a/vision_transformer.py"
# to = "{vbench}/dino_model/facebookresearch_dino_main"
# size = 11150
# sha256 = "b1f998d5f49ab43666b9fc6d007c5f6540c3ead2e8645e144f74045f63ff44d7"
#
# [[tool.spectrum-bench.weights]]
# url = "https://raw.githubusercontent.com/facebookresearch/dino/7c446df5b9f45747937fb0d72314eb9f7b66930a/utils.py"
# to = "{vbench}/dino_model/facebookresearch_dino_main"
# size = 28039
# sha256 = "962a97e1acda1c986dfd921275325e4083f9016dddadcf018f1ccf03fa600eab"
#
# # DINO's weights, which torch.hub and VBench want at two places. Checksum as others have published it.
# [[tool.spectrum-bench.weights]]
# url = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
# to = "{vbench}/dino_model"
# size = 343242485
# sha256 = "bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e"
#
# [[tool.spectrum-bench.weights]]
# url = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
# to = "{torch}/hub/checkpoints"
# size = 343242485
# sha256 = "bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e"
#
# # background_consistency and aesthetic_quality: OpenAI's CLIP, whose checksums are in the URLs.
# [[tool.spectrum-bench.weights]]
# url = "https://openaipublic.azureedge.net/clip/models/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"
# to = "{vbench}/clip_model"
# size = 353976522
# sha256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
#
# [[tool.spectrum-bench.weights]]
# url = "https://openaipublic.azureedge.net/clip/models/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt"
# to = "{vbench}/clip_model"
# size = 932768134
# sha256 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
#
# # aesthetic_quality: the linear head. Checksum computed from the file of that commit.
# [[tool.spectrum-bench.weights]]
# url = "https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/6d122adad522ab246644d9dc1c6d7a3810ee255f/sa_0_4_vit_l_14_linear.pth"
# to = "{vbench}/aesthetic_model/emb_reader"
# size = 4071
# sha256 = "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"
#
# # motion_smoothness. Checksum as the hub shows it.
# [[tool.spectrum-bench.weights]]
# url = "{hub}/lalala125/AMT/resolve/main/amt-s.pth"
# to = "{vbench}/amt_model"
# size = 12038359
# sha256 = "07e7e03405c213fe4405678db9b42d05671e48c56faf6a441b99bb0047d3cf77"
#
# # dynamic_degree. Checksum as the hub shows it of several copies.
# [[tool.spectrum-bench.weights]]
# url = "https://github.com/sczhou/ProPainter/releases/download/v0.1.0/raft-things.pth"
# to = "{vbench}/raft_model/models"
# size = 21108000
# sha256 = "fcfa4125d6418f4de95d84aec20a3c5f4e205101715a79f193243c186ac9a7e1"
#
# # imaging_quality. The first 8 digits of the checksum are in the file's name.
# [[tool.spectrum-bench.weights]]
# url = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth"
# to = "{vbench}/pyiqa_model"
# size = 108610983
# sha256 = "358bb6af275e28ea56821d44fb55c6cb83645db11f394d3ad65b2d149965ab50"
# ///

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

AT_ONCE = 100  # clips between two writes of the results; VBench loads a dimension's network again for each batch


def evaluate(vbench: Any, dimension: str, clips: dict[str, str], folder: Path) -> dict[str, float | str]:
    """id -> score, or an error message. If all clips together fail, each half is tried, down to the clip at fault."""
    try:
        return dict(_evaluate(vbench, dimension, clips, folder))
    except Exception as error:
        names = list(clips)
        if len(names) == 1:
            return {names[0]: f"{dimension}: {type(error).__name__}: {error}"}
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        parts = [{name: clips[name] for name in half} for half in halves]
        return evaluate(vbench, dimension, parts[0], folder / "a") | evaluate(vbench, dimension, parts[1], folder / "b")


def _evaluate(vbench: Any, dimension: str, clips: dict[str, str], folder: Path) -> dict[str, float]:
    videos = folder / "videos"
    videos.mkdir(parents=True)
    for name, path in clips.items():
        (videos / f"{name}.mp4").symlink_to(path)
    vbench.output_path = str(folder)
    how = {"local": True, "mode": "custom_input", "imaging_quality_preprocessing_mode": "longer"}
    vbench.evaluate(videos_path=str(videos), name="scores", dimension_list=[dimension], **how)
    each = json.loads((folder / "scores_eval_results.json").read_text())[dimension][1]
    scale = 100 if dimension == "imaging_quality" else 1  # 0 to 100 for a clip, 0 to 1 for all clips
    scores = {Path(entry["video_path"]).stem: float(entry["video_results"]) / scale for entry in each}
    if scores.keys() != clips.keys():
        raise ValueError("VBench left clips out")
    return scores


def score(judge: Any, dimensions: Sequence[str], clips: dict[str, str], folder: Path) -> dict[str, dict[str, Any]]:
    """id -> its score in every dimension, or "error". A clip that fails in one dimension is left out of the others."""
    scores: dict[str, dict[str, Any]] = {name: {} for name in clips}
    for dimension in dimensions:
        whole = {name: path for name, path in clips.items() if "error" not in scores[name]}
        for name, value in (evaluate(judge, dimension, whole, folder / dimension) if whole else {}).items():
            scores[name] = {"error": value} if isinstance(value, str) else scores[name] | {dimension: value}
    return scores


def main(manifest: str, results: str, cache: str, *dimensions: str) -> None:
    os.environ["VBENCH_CACHE_DIR"] = cache  # the package reads it on import
    import vbench

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples = [json.loads(line) for line in Path(manifest).read_text(encoding="utf-8").splitlines()]
    info = Path(vbench.__file__).parent / "VBench_full_info.json"
    with open(results, "a", encoding="utf-8") as out:
        for start in range(0, len(samples), AT_ONCE):
            clips = {sample["id"]: sample["path"] for sample in samples[start : start + AT_ONCE]}
            with tempfile.TemporaryDirectory() as folder:
                scores = score(vbench.VBench(device, str(info), folder), dimensions, clips, Path(folder))
            for name, values in scores.items():
                print(json.dumps({"id": name} | values), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
