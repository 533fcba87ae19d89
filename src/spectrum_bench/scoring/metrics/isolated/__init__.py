"""Metrics whose packages cannot live beside today's transformers: each is one script in an environment of its own.

A script reads a manifest, one JSON line {"id", "path", "prompt"} a sample, and appends to a results file one line
{"id", ...scores} or {"id", "error"} as each is done. It imports nothing of ours. What is finished is kept beside the
samples, in <experiment>/scores, by the hash of the sample's bytes and its prompt, and is not computed again.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.paths import ROOT
from spectrum_bench.scoring.metrics import METRICS, VBENCH

HERE = Path(__file__).parent
REQUIREMENTS = ROOT / "configs" / "environments"
CACHE = Path.home() / ".cache" / "spectrum_bench" / "environments"


def environment(name: str) -> Path:
    """The Python of an environment, made from configs/environments/<name>.txt on first use and when that changes.

    Raises:
        MetricUnavailable: pip fails.
    """
    folder = _place(name)
    python = folder / "bin" / "python"
    if is_made(name):
        return python
    print(f"{name}: making its environment {folder} (once; some gigabytes)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    steps = (
        [sys.executable, "-m", "venv", folder],
        [
            *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("-r", REQUIREMENTS / f"{name}.txt"),
        ],
    )
    for step in steps:
        done = subprocess.run(list(map(str, step)), capture_output=True, text=True)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise MetricUnavailable(
                name, f"its environment could not be made ({''.join(last)})", " ".join(map(str, step))
            )
    (folder / "complete").touch()
    return python


def is_made(name: str) -> bool:
    """Whether the environment is there already."""
    return (_place(name) / "complete").exists()


def _place(name: str) -> Path:
    """Where an environment with these requirements is, or will be."""
    wanted = (REQUIREMENTS / f"{name}.txt").read_bytes()
    return CACHE / f"{name}-{hashlib.sha256(wanted).hexdigest()[:12]}"


def score(name: str, files: list[str], items: list[tuple[Path, str]]) -> list[dict[str, float]]:
    """Scores of (path, prompt) samples by score_<name>.py; nan where it failed on one, which is said on stderr.

    Args:
        files: further arguments of the script: where its weights are, and what it is to score.

    Raises:
        MetricUnavailable: its environment cannot be made, or the script itself fails.
    """
    names = (name, *METRICS[name].details)
    keys = [hashlib.sha256(path.read_bytes() + prompt.encode()).hexdigest()[:32] for path, prompt in items]
    stores = {path: path.parent.parent / "scores" / f"{name}.jsonl" for path, _ in items}
    known: dict[str, dict] = {}
    for store in set(stores.values()):
        known |= {line["id"]: line for line in _read(store) if "error" not in line}
    for store in sorted(set(stores.values())):
        missing = {
            key: {"id": key, "path": str(path.resolve()), "prompt": prompt}
            for key, (path, prompt) in zip(keys, items, strict=True)
            if key not in known and stores[path] == store
        }
        if not missing:
            continue
        store.parent.mkdir(parents=True, exist_ok=True)
        if store.is_file() and not store.read_bytes().endswith(b"\n"):  # cut off by a kill: the next line starts anew
            with open(store, "a") as file:
                file.write("\n")
        manifest = store.with_suffix(".manifest")
        manifest.write_text("".join(json.dumps(line) + "\n" for line in missing.values()), encoding="utf-8")
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TORCH_HOME": str(_torch_home())}
        command = [environment(name), HERE / f"score_{name}.py", manifest, store, *files]
        done = subprocess.run(list(map(str, command)), env=os.environ | offline, capture_output=True, text=True)
        manifest.unlink()
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise MetricUnavailable(name, f"its script failed ({''.join(last)})", "mend that, and evaluate again")
        last = {line["id"]: line for line in _read(store)}  # of a sample that failed before, only what came of it now
        for key, sample in missing.items():
            known[key] = last.get(key, {"error": "its script left it out"})
            if "error" in known[key]:
                print(f"{name}: {sample['path']}: {known[key]['error']}", file=sys.stderr)
    return [{n: float(known.get(key, {}).get(n, "nan")) for n in names} for key in keys]


def _torch_home() -> Path:
    """Where downloads.py puts what torch.hub reads; torch itself would follow XDG_CACHE_HOME, and download."""
    return Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")


def _read(store: Path) -> list[dict]:
    """The whole lines of a results file; one that was cut off by a kill is left out."""
    if not store.is_file():
        return []
    found = []
    for line in store.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


# ---------------------------------------------------------------------------------------------------------------------


def make_imagereward(config: dict):
    """ImageReward v1.0 (Xu et al. 2023, arXiv:2304.05977)."""
    if (config.get("model") or {}).get("fps"):
        raise MetricUnavailable("imagereward", "these are clips", "it scores pictures")
    folder = Path.home() / ".cache" / "ImageReward"
    weights = folder / "ImageReward.pt", folder / "med_config.json", _tokenizer()
    _there("imagereward", weights)
    return partial(score, "imagereward", weights)


def _tokenizer() -> Path:
    """The vocabulary of bert-base-uncased, under the name by which ImageReward asks for it."""
    from huggingface_hub import constants, try_to_load_from_cache

    path = try_to_load_from_cache("bert-base-uncased", "vocab.txt")
    return Path(path if isinstance(path, str) else f"{constants.HF_HUB_CACHE}/models--bert-base-uncased/vocab.txt")


def make_vbench(config: dict, name: str = "vbench"):
    """VBench's quality dimensions (Huang et al. 2024, arXiv:2311.17982) on clips of any prompt; their Quality Score."""
    if not (config.get("model") or {}).get("fps"):
        raise MetricUnavailable(name, "these are pictures", "it scores clips")
    home = Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")
    _there(
        name,
        (
            home / "dino_model" / "facebookresearch_dino_main" / "hubconf.py",
            home / "dino_model" / "dino_vitbase16_pretrain.pth",
            _torch_home() / "hub" / "checkpoints" / "dino_vitbase16_pretrain.pth",
            home / "clip_model" / "ViT-B-32.pt",
            home / "clip_model" / "ViT-L-14.pt",
            home / "aesthetic_model" / "emb_reader" / "sa_0_4_vit_l_14_linear.pth",
            home / "amt_model" / "amt-s.pth",
            home / "raft_model" / "models" / "raft-things.pth",
            home / "pyiqa_model" / "musiq_spaq_ckpt-358bb6af.pth",
        ),
    )

    def scores(items):
        found = score("vbench", [home, *VBENCH], items)
        return [each | {"vbench": quality(each)} for each in found]

    return scores


def make_vbench_standard(config: dict):
    """As published: of each clip only the dimensions that VBench asks of its prompt."""
    every = make_vbench(config, "vbench_standard")

    def scores(items):
        asked = prompts_of_dimensions()
        return standard(every(items), [asked.get(prompt, ()) for _, prompt in items])

    return scores


def prompts_of_dimensions() -> dict[str, set[str]]:
    """Prompt -> the quality dimensions that VBench measures on it, by the list in its package."""
    (info,) = environment("vbench").parents[1].glob("lib/python*/site-packages/vbench/VBench_full_info.json")
    asked: dict[str, set[str]] = {}
    for entry in json.loads(info.read_text(encoding="utf-8")):  # two prompts are there twice
        asked.setdefault(entry["prompt_en"], set()).update(set(entry["dimension"]) & set(VBENCH))
    return asked


def standard(found: list[dict[str, float]], asked: list[set[str]]) -> list[dict[str, float]]:
    """Of every clip the dimensions asked of it, as standard_<dimension>, and as `vbench_standard` its share in the
    Quality Score, so that their mean is the score: dimension d counts N / N_d times on each of its N_d clips, if N
    clips are asked for any. nan where nothing is asked, or the clip could not be scored.

    Args:
        found: of every clip all dimensions, and "vbench", which is nan if it could not be scored.

    Raises:
        MetricUnavailable: one of the seven dimensions is asked of no clip.
    """
    asked = [set() if math.isnan(each["vbench"]) else dims for each, dims in zip(found, asked, strict=True)]
    counts = {name: sum(name in dims for dims in asked) for name in VBENCH}
    if absent := [name for name, count in counts.items() if not count]:
        reason = f"no clip of VBench's prompts for {', '.join(absent)}"
        raise MetricUnavailable("vbench_standard", reason, "python download.py prompts=vbench, and all of them")
    clips, weights = sum(map(bool, asked)), sum(weight for _, _, weight in QUALITY.values())
    rows = []
    for each, dims in zip(found, asked, strict=True):
        parts = [(*QUALITY[name], each[name], clips / counts[name]) for name in dims]
        share = sum(w * (x - low) / (high - low) * times for low, high, w, x, times in parts) / weights
        own = {f"standard_{name}": each[name] if name in dims else math.nan for name in VBENCH}
        rows.append({"vbench_standard": share if dims else math.nan} | own)
    return rows


def _there(metric: str, weights: tuple[Path, ...]) -> None:
    for path in weights:
        if not path.is_file():
            shown = str(path).replace(str(Path.home()), "~", 1)  # tables are published
            raise MetricUnavailable(metric, f"no {shown}", f"python download.py metrics={metric}")


# Vchitect/VBench@45e79ec, scripts/constant.py: lowest and highest value, weight.
QUALITY = dict(
    zip(
        VBENCH,
        [
            (0.1462, 1.0, 1.0),
            (0.2615, 1.0, 1.0),
            (0.6293, 1.0, 1.0),
            (0.706, 0.9975, 1.0),
            (0.0, 1.0, 0.5),
            (0.0, 1.0, 1.0),
            (0.0, 1.0, 1.0),
        ],
        strict=True,
    )
)


def quality(dimensions: dict[str, float]) -> float:
    """VBench's Quality Score, a share: the weighted mean of the seven dimensions, each mapped from its range to [0, 1],
    not clipped. nan where one is missing: the official script would count it as 0."""
    weights = sum(weight for _, _, weight in QUALITY.values())
    return sum(w * (dimensions[name] - low) / (high - low) for name, (low, high, w) in QUALITY.items()) / weights
