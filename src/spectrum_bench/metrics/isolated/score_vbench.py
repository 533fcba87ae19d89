"""VBench's dimensions of every clip in a manifest.

score_vbench.py <manifest> <results> <VBENCH_CACHE_DIR> <dimension> ...

Runs by itself in the environment of configs/environments/vbench.txt, by VBench's Python interface, mode custom_input.
"""

import json
import os
import sys
import tempfile
from pathlib import Path


def evaluate(vbench, dimension: str, clips: dict[str, str], folder: Path) -> dict[str, float]:
    """id -> score. All clips at once; one by one if that fails, to find the one that cannot be scored."""
    try:
        return _evaluate(vbench, dimension, clips, folder / dimension)
    except Exception:
        found = {}
        for i, (name, path) in enumerate(clips.items()):
            try:
                found |= _evaluate(vbench, dimension, {name: path}, folder / f"{dimension}-{i}")
            except Exception as error:
                found[name] = f"{dimension}: {type(error).__name__}: {error}"
        return found


def _evaluate(vbench, dimension: str, clips: dict[str, str], folder: Path) -> dict[str, float]:
    videos = folder / "videos"
    videos.mkdir(parents=True)
    for name, path in clips.items():
        (videos / f"{name}.mp4").symlink_to(path)
    vbench.output_path = str(folder)
    how = {"local": True, "mode": "custom_input", "imaging_quality_preprocessing_mode": "longer"}
    vbench.evaluate(videos_path=str(videos), name="found", dimension_list=[dimension], **how)
    each = json.loads((folder / "found_eval_results.json").read_text())[dimension][1]
    scale = 100 if dimension == "imaging_quality" else 1  # of a clip it is 0 to 100, of all 0 to 1
    found = {Path(entry["video_path"]).stem: float(entry["video_results"]) / scale for entry in each}
    if found.keys() != clips.keys():
        raise ValueError("VBench left clips out")
    return found


def main(manifest: str, results: str, cache: str, *dimensions: str) -> None:
    os.environ["VBENCH_CACHE_DIR"] = cache
    import torch
    import vbench

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = {}
    for line in Path(manifest).read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        clips[sample["id"]] = sample["path"]
    info = Path(vbench.__file__).parent / "VBench_full_info.json"
    with tempfile.TemporaryDirectory() as folder:
        judge = vbench.VBench(device, str(info), folder)
        found = {dimension: evaluate(judge, dimension, clips, Path(folder)) for dimension in dimensions}
    with open(results, "a", encoding="utf-8") as out:
        for name in clips:
            scores = {dimension: found[dimension][name] for dimension in dimensions}
            errors = [score for score in scores.values() if isinstance(score, str)]
            print(json.dumps({"id": name} | ({"error": errors[0]} if errors else scores)), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
