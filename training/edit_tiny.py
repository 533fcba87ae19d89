"""Teach a miniature pipeline to edit pictures: a LoRA on its denoiser, in diffusers' own form.

    python training/edit_tiny.py

The recipe is configs/train/kontext.yaml. A checkpoint is written on the way; run the command again to go on.
"""

import json
import sys
from pathlib import Path

import hydra

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]


@hydra.main(version_base="1.3", config_path="../configs/train", config_name="kontext")
def main(cfg):
    import torch
    from diffusers import DiffusionPipeline

    from spectrum_bench.miniature.judge import load_judge
    from training import editing
    from training.distil import Lora
    from training.students import open_student

    student = open_student(cfg)
    lora = Lora(student.denoiser, cfg.rank)
    editing.train_editor(student, lora, cfg)
    out = ROOT / cfg.out
    lora.save(out)
    plain = DiffusionPipeline.from_pretrained(ROOT / cfg.start, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    score = editing.edit_score(student.pipe, plain, load_judge(ROOT / cfg.judge), cfg)
    (out / "score.json").write_text(json.dumps(score, indent=2) + "\n")
    print(json.dumps(score, indent=2))


if __name__ == "__main__":
    main()
