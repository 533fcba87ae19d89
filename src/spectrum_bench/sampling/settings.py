"""The settings of a run: range checks, what decides a sample's pixels, what may differ on resume."""

import inspect
import os
import re
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.models import LOADERS
from spectrum_bench.sampling.records import write_atomically

# Model settings that describe: they decide no pixel.
DESCRIPTIVE = {"judge", "note", "metrics", "dev_prompts"}

ALIASES = ("window_size", "flex_window", "warmup_steps")  # upstream's keys; schedules and forecasters may read them

# What decides a sample's pixels, with its seed.
IDENTITY = ("model", "schedule", "site", "algo", "num_inference_steps", "runtime")

FREE = ("total_prompt_num", "samples_per_prompt", "output_base_path", "exp_name", "ngpu", "device", "threads")

FREE += ("warmup_samples", "keep_latents", "retry_failed", "engine")


def check_aliases(cfg: DictConfig) -> None:
    """Refuse an upstream key that was given and that the chosen schedule and algorithm would silently ignore."""
    given = {o.lstrip("+~").split("=", 1)[0] for o in HydraConfig.get().overrides.task}
    parts = {k: cfg[k] for k in ("schedule", "algo") if k in cfg}
    read = str([OmegaConf.to_container(part, resolve=False) for part in parts.values()])
    for alias in ALIASES:
        if alias in given and f"${{{alias}}}" not in read:
            readers = [a for a in ALIASES if f"${{{a}}}" in read]
            raise UserError(
                f"{alias} is not read by algo={cfg.algo.name} with this schedule"
                + (f" (it reads {', '.join(readers)})" if readers else "")
                + ": leave it out, or set the schedule's own keys, e.g. schedule.interval=4"
            )


def claim(folder: Path, plain: dict) -> None:
    """Write `config.yaml`, or make sure that the one there is of the same experiment."""
    path = folder / "config.yaml"
    if path.exists():
        try:
            ours, theirs = comparable(plain), comparable(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
            raise UserError(f"{path} is damaged: choose another exp_name, or remove that folder") from None
        keys = [k for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k)]
        if keys:
            raise UserError(
                f"{folder} was made with another configuration ({', '.join(keys)} differ): "
                "choose another exp_name, or remove that folder"
            )
    locked = [p for p in (folder, folder / "samples", folder / "records") if p.exists() and not os.access(p, os.W_OK)]
    if locked:
        raise UserError(f"cannot write to {locked[0]}: change its permissions, or choose another exp_name")
    if path.exists():
        return
    try:
        write_atomically(path, yaml.safe_dump(plain, allow_unicode=True, sort_keys=False).encode())
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another output_base_path") from None


def comparable(plain: dict) -> dict:
    """The part of a configuration that makes two runs the same experiment."""
    kept = {k: v for k, v in plain.items() if k not in (*FREE, "labels")}  # what FREE names is free to change
    return kept | {"model": {k: v for k, v in kept["model"].items() if k not in DESCRIPTIVE}}


def labels(plain: dict) -> dict[str, str]:
    """The algorithm in words, for records and tables: name(argument=value, ...), without lists and defaults."""

    def label(node):
        if not node:
            return "-"
        defaults = {k: p.default for k, p in inspect.signature(get_object(node["_target_"])).parameters.items()}
        told = {k: v for k, v in node.items() if isinstance(v, (int, float, str)) and v != defaults.get(k, k)}
        arguments = ", ".join(f"{k}={v}" for k, v in told.items() if not k.startswith("_"))
        name = node["_target_"].rpartition(".")[2]
        return f"{name}({arguments})" if arguments else name

    return {
        "algo": plain["algo"]["name"],
        "schedule": label(plain["schedule"]),
        "forecaster": label(plain["algo"]["forecaster"]),
        "site": label(plain["site"]),
    }


def checked(cfg: DictConfig) -> dict:
    """The configuration as plain values, with "site" None where the algorithm has none.

    Raises:
        UserError: a value of the wrong kind, which would only show after the model is loaded.
    """
    import torch
    from diffusers.models.attention_dispatch import AttentionBackendName

    for key, least in {
        "seed": 0,
        "samples_per_prompt": 1,
        "threads": 1,
        "warmup_samples": 0,
        "keep_latents": 0,
        "ngpu": 1,
        "runtime.batch_size": 1,
        "total_prompt_num": 1,
        "num_inference_steps": 1,
        "model.frame_stride": 1,
    }.items():
        value = OmegaConf.select(cfg, key, default=least)
        if not (isinstance(value, int) and value >= least or value is None and key == "total_prompt_num"):
            raise UserError(f"{key} must be a whole number of at least {least}, not {value}")
    for key in {"exp_name", "output_base_path", "prompt_file"} & cfg.keys():
        if cfg[key] is None:
            raise UserError(f"{key} is null: name one")
        cfg[key] = str(cfg[key])  # exp_name=20261122 is one
    folders = cfg.get("exp_name", "none").split("/")
    if not all(re.fullmatch(r"[\w=,.+@ -]+", folder) and folder != ".." for folder in folders):
        raise UserError(f"exp_name={cfg.exp_name} is no folder below output_base_path: use letters, digits and -_=,.")
    if cfg.seed + cfg.get("samples_per_prompt", 1) > 2**63:
        raise UserError(f"seed={cfg.seed} is too large: keep it below 2^63")
    for key in ("dtype", "vae_dtype"):
        if cfg.model.get(key, "float32") not in ("float32", "bfloat16", "float16"):
            raise UserError(f"model.{key}={cfg.model[key]} is none of float32, bfloat16, float16")
    if cfg.model.init not in LOADERS:
        raise UserError(f"model.init={cfg.model.init} is none of {', '.join(LOADERS)}")
    for key in ("width", "height"):
        if not (isinstance(cfg.model[key], int) and cfg.model[key] > 0 and cfg.model[key] % 16 == 0):
            raise UserError(f"model.{key} must be a positive multiple of 16 pixels, not {cfg.model[key]}")
    frames, stride = cfg.model.get("num_frames", 1), cfg.model.get("frame_stride", 4)
    if not (isinstance(frames, int) and frames > 0 and (frames - 1) % stride == 0):
        raise UserError(
            f"model.num_frames must be 1 more than a multiple of {stride} (the VAE's step in time; another one's is "
            f"model.frame_stride), not {frames}"
        )
    if "num_frames" in cfg.model and "fps" not in cfg.model:
        raise UserError(f"model={cfg.model.name} has num_frames but no fps: write into its YAML how fast its clips run")
    fps = cfg.model.get("fps", 1)
    if not (isinstance(fps, (int, float)) and 0 < fps <= 240):
        raise UserError(f"model.fps must be a number of frames a second, not {fps}")
    if not isinstance(cfg.runtime.compile, bool):
        raise UserError(f"runtime.compile={cfg.runtime.compile} is neither true nor false")
    backends = [backend.value for backend in AttentionBackendName]
    if cfg.runtime.attention not in (None, *backends):
        raise UserError(f"runtime.attention={cfg.runtime.attention} is none of {', '.join(backends)}")
    if cfg.device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", str(cfg.device)):
        raise UserError(f"device={cfg.device} is none of cpu, cuda, cuda:<number>")
    if str(cfg.device).startswith("cuda") and int(cfg.device[5:] or 0) >= torch.cuda.device_count():
        raise UserError(f"device={cfg.device}: torch sees {torch.cuda.device_count()} GPUs; use device=cpu")
    return {"site": None} | OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
