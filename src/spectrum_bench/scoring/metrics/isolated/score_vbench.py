"""VBench's dimensions of every clip in a manifest.

score_vbench.py <manifest> <results> <VBENCH_CACHE_DIR> <dimension> ...

Runs by itself in the environment of configs/environments/vbench.txt, by VBench's Python interface, mode custom_input.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

AT_ONCE = 100  # clips between two writes of the results; VBench loads a dimension's network anew for each


def evaluate(vbench, dimension: str, clips: dict[str, str], folder: Path) -> dict[str, float | str]:
    """id -> score, or what is wrong. All clips at once; if that fails each half of them, down to the one at fault."""
    try:
        return _evaluate(vbench, dimension, clips, folder)
    except Exception as error:
        names = list(clips)
        if len(names) == 1:
            return {names[0]: f"{dimension}: {type(error).__name__}: {error}"}
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        parts = [{name: clips[name] for name in half} for half in halves]
        return evaluate(vbench, dimension, parts[0], folder / "a") | evaluate(vbench, dimension, parts[1], folder / "b")


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
    names = list(clips)
    with open(results, "a", encoding="utf-8") as out:
        for start in range(0, len(names), AT_ONCE):
            part = {name: clips[name] for name in names[start : start + AT_ONCE]}
            with tempfile.TemporaryDirectory() as folder:
                found = score(vbench.VBench(device, str(info), folder), dimensions, part, Path(folder))
            for name, scores in found.items():
                print(json.dumps({"id": name} | scores), file=out, flush=True)


def score(judge, dimensions: tuple[str, ...], clips: dict[str, str], folder: Path) -> dict[str, dict]:
    """id -> every dimension, or "error"; of a clip that failed in one dimension the others are not asked for."""
    found = {name: {} for name in clips}
    for dimension in dimensions:
        whole = {name: path for name, path in clips.items() if "error" not in found[name]}
        for name, value in (evaluate(judge, dimension, whole, folder / dimension) if whole else {}).items():
            found[name] = {"error": value} if isinstance(value, str) else found[name] | {dimension: value}
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
