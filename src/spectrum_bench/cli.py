"""What entry scripts share: Hydra's command line, and errors of one line."""

import difflib
import json
import os
import re
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .arguments import INTERRUPTED, fail
from .jobs import UserError
from .models import LOADERS, ROOT

CONFIGS = str(ROOT / "configs")
CALIBRATION = ROOT / "configs" / "calibration"


def calibrated(method: str, key: str, default=None, *, _root_):
    """${calibrated:<method>,<key>}: what the composed model was measured for, or the default."""
    path = CALIBRATION / method / f"{_root_.model.name}.json"
    return json.loads(path.read_text(encoding="utf-8")).get(key, default) if path.exists() else default


class Ended(Exception):
    """A run of a sweep has ended with this exit code. Hydra makes the others and then raises the first."""


OmegaConf.register_new_resolver("calibrated", calibrated, replace=True)


def hydra_entry(config_name: str, main: Callable):
    """The main function of an entry script: compose `configs/<config_name>.yaml` and call `main` with it."""

    @hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config_name)
    def job(cfg):
        try:
            try:
                return main(cfg)  # a sweeper that searches wants its value
            except (UserError, OmegaConfBaseException) as error:
                fail(error)
        except SystemExit as end:
            if HydraConfig.get().mode == RunMode.MULTIRUN and end.code != INTERRUPTED:
                raise Ended(end.code) from None
            raise

    def entry():
        check_words(config_name, sys.argv[1:])
        inherited = os.environ.get("PYTHONPATH")  # jobs of a launcher find us by it
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *([inherited] if inherited else [])])
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints what ends a sweep as if it were a bug
        try:
            job()
        except Ended as end:
            raise SystemExit(end.args[0]) from None
        except (HydraException, OmegaConfBaseException) as error:
            fail(UserError(explain(config_name, error)))

    return entry


def check_words(config_name: str, words: list[str]) -> None:
    """Compose once before Hydra does, to say in one line what is wrong with the words of the command line."""
    overrides = [word for word in words if not word.startswith("-") and "=" in word]
    if any(word.startswith("-") and word not in ("-m", "--multirun") for word in words):
        return  # --help, --cfg and the like are Hydra's own
    strangers = [word for word in words if not word.startswith("-") and "=" not in word]
    if strangers:
        fail(UserError(f"'{strangers[0]}' is not key=value: see --help"))
    if {"-m", "--multirun"} & set(words):
        overrides = [word for each in overrides for word in first_choice(config_name, each)]
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        try:
            hydra.compose(config_name, overrides)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            fail(UserError(explain(config_name, error)))


def first_choice(config_name: str, word: str) -> list[str]:
    """Of a sweep's word the first value; nothing of intervals and patterns, whose values Hydra finds."""
    try:
        override = OverridesParser.create().parse_override(word)
    except OverrideParseException as error:
        fail(UserError(explain(config_name, error)))
    if not override.is_sweep_override():
        return [word]
    if override.is_interval_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []
    return [f"{override.get_key_element()}={next(override.sweep_string_iterator())}"]


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


def explain(config_name: str, error: Exception) -> str:
    """Hydra's complaint in one line, with the nearest name that exists."""
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' as key=value: put quotes round special characters"
    text = str(error)
    if "Config group override must be" in text:
        return "a choice such as site= or algo= cannot be null: leave it out (algo=nocache has no site)"
    if choice := re.search(r"Could not find '([\w-]+)/([^']+)'", text):
        group, name = choice.groups()
        names = re.findall(r"^\t([\w-]+)$", text, re.MULTILINE)
        return f"there is no {group}={name}{nearest(name, names)}; choose of {', '.join(names)}"
    if key := re.search(r"Could not override '([^']+)'", text):
        default = OmegaConf.to_container(hydra.compose(config_name), resolve=False)
        return f"there is no key {key[1]}{nearest(key[1], list(paths(default)))}: see --cfg job"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = str(error.__cause__)
    return text.split("\n")[0]


def nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def paths(node, prefix: str = ""):
    """Dotted names of all keys below a plain configuration."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield prefix + key
        yield from paths(value, f"{prefix}{key}.")
