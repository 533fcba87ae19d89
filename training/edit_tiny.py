"""Teach a miniature pipeline to edit pictures: a LoRA on its denoiser, in diffusers' own form.

    python training/edit_tiny.py

The recipe is configs/train/kontext.yaml. A checkpoint is written on the way; run the command again to go on.
"""

import json
import sys
from pathlib import Path

import hydra
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]


@hydra.main(version_base="1.3", config_path="../configs/train", config_name="kontext")
def main(cfg):
    import diffusers
    from safetensors.torch import save_file

    from spectrum_bench.miniature.judge import load_judge
    from training import editing
    from training.distil import Lora
    from training.students import STUDENTS

    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    Path(cfg.work).mkdir(parents=True, exist_ok=True)
    pipe = getattr(diffusers, cfg.pipeline).from_pretrained(ROOT / cfg.start, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    call = OmegaConf.to_container(cfg.call, resolve=True)
    student = STUDENTS[cfg.pipeline](pipe, call, cfg.width).eval().requires_grad_(False)
    lora = Lora(student.denoiser, cfg.rank)
    editing.train_editor(student, lora, cfg)
    out = ROOT / cfg.out
    out.mkdir(parents=True, exist_ok=True)
    save_file(lora.tensors("transformer"), out / "lora.safetensors")
    plain = diffusers.DiffusionPipeline.from_pretrained(ROOT / cfg.start, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    score = editing.edit_score(pipe, plain, load_judge(ROOT / cfg.judge), cfg)
    (out / "score.json").write_text(json.dumps(score, indent=2) + "\n")
    print(json.dumps(score, indent=2))


if __name__ == "__main__":
    main()
