"""Distil a miniature pipeline into a few-step student of it: a LoRA on its denoiser, in diffusers' own form.

    python training/distil_tiny.py

The recipe is configs/train/student.yaml. Every stage writes a checkpoint; run the command again to go on.
"""

import json
import sys
from pathlib import Path

import hydra
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]


@hydra.main(version_base="1.3", config_path="../configs/train", config_name="student")
def main(cfg):
    from diffusers import DiffusionPipeline
    from safetensors.torch import save_file

    from spectrum_bench.miniature.judge import load_judge
    from training import distil
    from training.students import STUDENTS
    from training.train import caption_score

    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    Path(cfg.work).mkdir(parents=True, exist_ok=True)
    plain = OmegaConf.to_container(cfg, resolve=True)
    pipe = DiffusionPipeline.from_pretrained(ROOT / cfg.start, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    student = STUDENTS[cfg.pipeline](pipe, plain["call"], cfg.width).eval().requires_grad_(False)
    paths = distil.make_paths(student, cfg)
    lora = distil.Lora(student.denoiser, cfg.rank)
    distil.train_windows(student, lora, paths, cfg)
    distil.train_rollout(student, lora, paths, cfg)
    out = ROOT / cfg.out
    out.mkdir(parents=True, exist_ok=True)
    save_file(lora.tensors("transformer"), out / "lora.safetensors")
    score = caption_score(pipe, load_judge(ROOT / cfg.judge), OmegaConf.create(plain))
    (out / "score.json").write_text(json.dumps(score, indent=2) + "\n")
    print("held-out captions followed:", json.dumps(score))


if __name__ == "__main__":
    main()
