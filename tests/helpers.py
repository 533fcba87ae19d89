"""What several test files share: configurations, entry scripts in processes, calls of small random pipelines."""

import os
import re
import shutil
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from forked import Command
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from spectrum_bench import forecasters, schedules
from spectrum_bench.anatomy import stacks
from spectrum_bench.caching.session import Session, cached, denoisers
from spectrum_bench.commands.compose import settings_of
from spectrum_bench.paths import CONFIGS, ROOT
from spectrum_bench.sampling.settings import RunSettings

STEPS = 6
MASK = partial(schedules.mask, steps=[0, 1, 4])
TAYLOR = partial(forecasters.taylor, order=1)
CALLS = {"wan": 2}  # network calls a step; the other miniatures batch their guidance or have none


def composed(*words: str, config_name: str = "base") -> DictConfig:
    """configs/<config_name>.yaml as the command line would compose it."""
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = hydra.compose(config_name, list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg


def settings(*words: str, config_name: str = "base") -> RunSettings:
    """The typed settings of such a configuration."""
    return settings_of(composed(*words, config_name=config_name))


@cache
def node(group: str, name: str) -> DictConfig:
    """What the choice of a name puts into a configuration."""
    return composed(f"{group}={name}")[group]


@cache
def method(*words: str) -> tuple[DictConfig, DictConfig]:
    """The configuration, and what Hydra keeps of how it was composed."""
    return composed(*words), HydraConfig.instance().cfg


def paired(model: str, algo: str, *words: str) -> RunSettings:
    """The settings of `model=<model> algo=<algo>` and `words`. Composing each pair would take minutes: a model changes
    its own node alone (test_configs)."""
    network = node("model", model)
    cfg, HydraConfig.instance().cfg = method(f"algo={algo}", *words)
    cfg = cfg.copy()
    cfg.model = network
    return settings_of(cfg)


def first_of_its_site(algos: Iterable[str]) -> list[str]:
    """Of each site that the algorithms' YAMLs name one algorithm, the first: the others put the same stand-ins into a
    denoiser."""
    chosen: dict[str | None, str] = {}
    for algo in algos:
        lines = (Path(CONFIGS) / "algo" / f"{algo}.yaml").read_text(encoding="utf-8")
        site = re.search(r"override /site@\S+ (\S+)", lines)
        chosen.setdefault(site and site[1], algo)
    return list(chosen.values())


def examples() -> dict[str, str]:
    """The code of docs/extend.md: what the first line of a block names -> the code, of all its blocks together."""
    page = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
    code: dict[str, str] = {}
    for name, block in re.findall(r"^```\w+\n# ([^\n]*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        code[name] = code.get(name, "") + block
    return code


def recipe(name: str) -> dict:
    """configs/train/<name>.yaml, composed."""
    with hydra.initialize_config_dir(str(ROOT / "configs/train"), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose(name), resolve=True)


def made_up_sample() -> tuple[np.ndarray, np.ndarray]:
    """x_0 and the outputs of 8 steps, (9, 300), and a scheduler's matrix, (9, 9), for searches without a model."""
    random = np.random.default_rng(0)
    basis = np.cumsum(random.standard_normal((9, 300)), 0)
    matrix = np.tril(random.standard_normal((9, 9)), 0)
    matrix[0] = np.eye(9)[0]
    return basis, matrix


def drawing(weights: Path, folder: Path, prompts: list[str]) -> list[str]:
    """A command line that draws prompts in eight steps with the pipeline in `weights`, everything else in `folder`."""
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    return [
        f"model.repo={weights}",
        f"prompt_file={folder}/prompts.txt",
        f"output_base_path={folder}/out",
        "exp_name=x",
        "num_inference_steps=8",
        "warmup_samples=0",
    ]


def start(*words: str, **more) -> Command:
    """src/text_to_image.py at work with `words`; `more` goes to Command."""
    return Command(ROOT / "src/text_to_image.py", *words, **more)


def finish(process: Command, code: int = 0) -> tuple[str, str]:
    """What a process wrote to stdout and stderr until its end, with the exit code that is expected."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    return out, err


def sample(pipe, name: str, prompts=("a red ring",), seed=0, steps=STEPS, callback=None, **call) -> torch.Tensor:
    """Latents of one call of the miniature `name`, one prompt a sample; `call` goes to the pipeline."""
    return pipe(
        list(prompts),
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
        output_type="latent",
        return_dict=False,
        callback_on_step_end=callback,
        **(recipe(name)["call"] | call),
    )[0]


def run(pipe, name: str, site, schedule=MASK, forecaster=TAYLOR, steps=STEPS, **extra) -> tuple[torch.Tensor, Session]:
    """The same call under an algorithm: its latents and the session."""
    with cached(pipe, schedule=schedule, forecaster=forecaster, site=site, num_steps=steps) as session:
        return sample(pipe, name, steps=steps, callback=session.callback, **extra), session


def denoiser(pipe) -> nn.Module:
    return next(iter(denoisers(pipe).values()))


def blocks(pipe) -> list[nn.Module]:
    """Every block of the pipeline's denoiser in the order in which it runs."""
    parts = [getattr(denoiser(pipe), name) for name in stacks(denoiser(pipe))]
    return [b for part in parts for b in (part if isinstance(part, nn.ModuleList) else [part])]


def inventory(module: nn.Module) -> list[tuple]:
    """Each submodule with its identity, hooks and attributes: equal before and after if nothing stays attached."""
    return [
        (name, id(part), len(part._forward_hooks), len(part._forward_pre_hooks), sorted(vars(part)))
        for name, part in module.named_modules()
    ]


def chromium(profile: Path):
    """A headless Chromium that notes what its console says; the test is skipped where there is none."""
    browser, service = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (browser and service):
        if os.environ.get("CI"):
            pytest.fail("CI needs chromium and chromedriver: apt-get install -y chromium chromium-driver")
        pytest.skip("no chromium with chromedriver: apt-get install -y chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking")
    for flag in (*flags, "window-size=1400,1000", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(service))
