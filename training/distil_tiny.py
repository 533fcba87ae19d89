"""Distil a miniature pipeline into a few-step student of it: a LoRA on its denoiser, in diffusers' own form.

    python training/distil_tiny.py

The recipe is configs/train/student.yaml. Every stage writes a checkpoint; run the command again to go on.
"""

import json
import sys
from pathlib import Path

import hydra
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]


@hydra.main(version_base="1.3", config_path="../configs/train", config_name="student")
def main(cfg):
    from spectrum_bench.miniature.judge import load_judge
    from training import distil
    from training.students import open_student
    from training.train import caption_score

    student = open_student(cfg)
    paths = distil.make_paths(student, cfg)
    lora = distil.Lora(student.denoiser, cfg.rank)
    distil.train_windows(student, lora, paths, cfg)
    distil.train_rollout(student, lora, paths, cfg)
    out = ROOT / cfg.out
    lora.save(out)
    plain = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    score = caption_score(student.pipe, load_judge(ROOT / cfg.judge), plain)
    (out / "score.json").write_text(json.dumps(score, indent=2) + "\n")
    print("held-out captions followed:", json.dumps(score))


if __name__ == "__main__":
    main()
