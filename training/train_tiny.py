"""Train a miniature pipeline from random weights and save it in diffusers' own format.

    python training/train_tiny.py --config-name sd3                                   # one process
    torchrun --nproc-per-node 2 training/train_tiny.py --config-name sd3              # two, gradients averaged
    python training/train_tiny.py --config-name sd3 device=cuda stages.denoiser.batch=512   # a GPU
    python training/train_tiny.py --config-name wan start=assets/tiny/wan stages.vae.steps=0 stages.text.steps=0 \\
        seed=43 root=further     # train the denoiser of the shipped miniature further, on clips of another seed

The recipes are in configs/train. Every stage writes a checkpoint; run the command again to go on.
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
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]


@hydra.main(version_base="1.3", config_path="../configs/train", config_name="flux")
def main(cfg):
    from spectrum_bench.miniature.judge import load_judge, save_judge
    from training import parts, text, train
    from training.fit import ranks
    from training.students import STUDENTS

    torch.set_num_threads(cfg.threads)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("gloo")
    for folder in (cfg.shared, cfg.work):
        Path(folder).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.seed)
    plain = OmegaConf.to_container(cfg, resolve=True)
    pipe = parts.build(plain).to(cfg.device)
    student = STUDENTS[cfg.pipeline](pipe, plain["call"], cfg.stages.denoiser.width).to(cfg.device)
    train.train_vae(student, cfg, cfg.device)
    judge = train.train_judge(student, cfg, cfg.device) if cfg.stages.judge else load_judge(ROOT / cfg.judge)
    judge.to(cfg.device)
    text.train_text(student, cfg, cfg.device)
    pool = train.make_pool(student, cfg, cfg.device)
    train.train_denoiser(student, pool, cfg, cfg.device)
    if "guide" in cfg.stages:
        train.distil_guidance(student, pool, cfg, cfg.device)
    if "decoder" in cfg.stages:
        train.train_decoder(student, cfg, cfg.device)
    if ranks()[0] > 0:
        return  # one process does the rest
    facts = train.judge_accuracy(judge, student, cfg, cfg.device)
    judge.to("cpu")
    export(pipe.to("cpu"), ROOT / cfg.out)
    if cfg.stages.judge:
        save_judge(judge, ROOT / cfg.judge, facts)
    else:  # the judge belongs to another model; its accuracy is measured through this VAE
        (ROOT / cfg.out / "judge.json").write_text(json.dumps(facts, indent=2) + "\n")
    pipe = type(pipe).from_pretrained(ROOT / cfg.out, dtype=torch.float32)  # as a user loads it: rounded to bf16
    score = train.caption_score(pipe, judge, OmegaConf.create(plain))
    (ROOT / cfg.out / "score.json").write_text(json.dumps(score, indent=2) + "\n")
    print("held-out captions followed:", json.dumps(score))


def export(pipe, out: Path):
    """Save the pipeline with bf16 weights, as safetensors only. Other files in the folder stay."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.to(torch.bfloat16).save_pretrained(part, safe_serialization=True)
    pipe.to(torch.float32)
    for file in part.rglob("*.json"):  # a pipeline that was trained further names the folder that it was loaded from
        settings = json.loads(file.read_text())
        if settings.pop("_name_or_path", None):
            file.write_text(json.dumps(settings, indent=2) + "\n")
    out.mkdir(parents=True, exist_ok=True)
    for piece in part.iterdir():
        old = out / piece.name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        piece.replace(old)
    part.rmdir()


if __name__ == "__main__":
    main()
