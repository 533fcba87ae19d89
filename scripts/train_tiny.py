"""Train a miniature pipeline from nothing and save it in diffusers' own format.

    python scripts/train_tiny.py                                         # one process
    torchrun --nproc-per-node 2 scripts/train_tiny.py                    # two, gradients averaged
    python scripts/train_tiny.py device=cuda stages.denoiser.batch=512   # a GPU

The recipe is configs/train/flux.yaml. Every stage keeps a checkpoint in `work`; run the command again to go on.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import hydra
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))


@hydra.main(version_base="1.3", config_path="../configs/train", config_name="flux")
def main(cfg):
    from tiny import parts, train
    from tiny.fit import ranks
    from tiny.judge import save_judge

    torch.set_num_threads(cfg.threads)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("gloo")
    work = ROOT / cfg.work
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.seed)
    pipe = parts.build_flux(OmegaConf.to_container(cfg, resolve=True))
    pipe.to(cfg.device)
    train.train_vae(pipe.vae, cfg, work, cfg.device)
    judge, facts = train.train_judge(pipe.vae.to("cpu"), cfg, work)
    pipe.to(cfg.device)
    train.train_text(pipe, cfg, work, cfg.device)
    pool = train.make_pool(pipe, cfg, work, cfg.device)
    student = train.train_denoiser(pipe, pool, cfg, work, cfg.device)
    train.distil_guidance(student, pool, pipe, cfg, work, cfg.device)
    if ranks()[0] > 0:
        return  # the rest is one process's work
    save_judge(judge, ROOT / cfg.out / "judge", facts)
    export(pipe.to("cpu"), ROOT / cfg.out)
    pipe = type(pipe).from_pretrained(ROOT / cfg.out, dtype=torch.float32)  # as a user loads it, rounded
    score = train.caption_score(pipe, judge, cfg)
    (ROOT / cfg.out / "score.json").write_text(json.dumps(score, indent=2) + "\n")
    print("held-out captions followed:", json.dumps(score))


def export(pipe, out: Path):
    """Save the pipeline with bf16 weights, in safetensors only; what else the folder holds stays."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.to(torch.bfloat16).save_pretrained(part, safe_serialization=True)
    pipe.to(torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    for piece in part.iterdir():
        old = out / piece.name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        piece.replace(old)
    part.rmdir()


if __name__ == "__main__":
    main()
