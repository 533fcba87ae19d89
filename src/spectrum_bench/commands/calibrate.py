"""calibrate: measure a model for an algorithm that needs it, and write configs/calibration/<algo>/<model>.json."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from spectrum_bench.checks import brief, whole
from spectrum_bench.commands.compose import read_calibration, settings_of
from spectrum_bench.commands.run import prepare
from spectrum_bench.errors import BadValue, UserError
from spectrum_bench.paths import CALIBRATION
from spectrum_bench.sampling.settings import RunSettings
from spectrum_bench.schedules import mask

FEWEST = 4  # steps; with fewer nothing can be measured


def main(cfg: DictConfig) -> None:
    """Measure a model for one algorithm, and write the constants that the algorithm reads.

    Raises:
        UserError: the algorithm needs no constants, or its signal does not predict this model's output.
    """
    settings = settings_of(cfg)
    if settings.num_inference_steps < FEWEST:
        steps = settings.num_inference_steps
        raise BadValue(f"num_inference_steps={steps} are too few to measure anything by: take those of the runs")
    degree, clusters = whole("degree", cfg.degree, most=20), whole("clusters", cfg.clusters, most=256)
    passes = whole("algo.passes", cfg.algo.get("passes", 1), most=settings.num_inference_steps)
    given = own_mask(cfg, settings.num_inference_steps, passes)
    from spectrum_bench.lab.calibration import BY_TURNS, METHODS, Fit
    from spectrum_bench.lab.finished import Finished
    from spectrum_bench.lab.uncached import Uncached

    algo, name = settings.method.name, settings.model.name
    if algo not in METHODS:
        raise UserError(f"algo={algo} needs no calibration: choose of {', '.join(METHODS)}")
    path = CALIBRATION / cfg.algo.get("calibration", algo) / f"{name}.json"
    check_writable(path)
    settings, prompts = prepare(cfg)
    from spectrum_bench.caching.session import denoisers
    from spectrum_bench.sampling.jobs import make_jobs
    from spectrum_bench.sampling.models import open_pipeline

    pipe, device = open_pipeline(settings)
    if len(denoisers(pipe)) > 1 and algo not in BY_TURNS:
        raise UserError(
            f"{name} runs {' and '.join(denoisers(pipe))} by turns, and the constants of algo={algo} are those of one "
            f"network: measure for {', '.join(BY_TURNS)}"
        )
    uncached = Uncached(pipe, settings.num_inference_steps, settings.model.arguments)
    about = origin(settings, len(prompts.lines), device, pipe)
    measured = about | {"list": prompts.sha256, "arguments": dict(settings.model.arguments), "passes": passes}
    finished = Finished(path.with_suffix(".begun"), measured)
    solver = str(cfg.algo.get("coefficients", "hindcast"))
    chosen = read_calibration(CALIBRATION / f"hindcast/{passes}/{name}.json").get("mask", ())
    at = given or (chosen if solver != "hindcast" else ())
    fit = Fit(passes, degree, clusters, settings.seed, solver, at, finished)
    write(path, about | METHODS[algo](uncached, make_jobs(prompts.lines, settings.seed, {}), fit))
    finished.delete()
    print(f"written to {path}: algo={algo} model={name} reads it")


def own_mask(cfg: DictConfig, T: int, passes: int) -> list[int]:
    """The steps of mask=, at which Hindcast's coefficients are to be fitted; none where they are to be searched.

    Raises:
        BadValue: it is no mask of T steps that begins with the first one, or not of so many passes.
        UserError: the algorithm takes none.
    """
    if cfg.mask is None:
        return []
    if "coefficients" not in cfg.algo:
        raise UserError(f"mask= holds the steps of algo=hindcast, and algo={cfg.algo.name} takes none")
    if not OmegaConf.is_list(cfg.mask):
        raise BadValue(f"mask={brief(cfg.mask)} is no list of steps: write mask=[0,2,5,...]")
    steps = np.flatnonzero(mask(T, steps=list(cfg.mask))).tolist()
    if steps[:1] != [0]:
        raise BadValue("mask= must begin with step 0, before which there is nothing to forecast from")
    if len(steps) != passes:
        raise BadValue(f"mask= has {len(steps)} steps and algo.passes is {passes}: give algo.passes={len(steps)}")
    return steps


def origin(settings: RunSettings, prompts: int, device: str, pipe: Any) -> dict[str, Any]:
    """The weights, the prompts and the machine that the constants were measured with."""
    from spectrum_bench.sampling.clock import environment

    command = f"python src/calibrate.py algo={settings.method.name} model={settings.model.name}"
    known = environment(device, settings.threads)
    return {
        "source": command,
        "weights": settings.model.weights,
        "prompts": f"{prompts} of {settings.prompt_file}",
        "seed": settings.seed,
        "steps": settings.num_inference_steps,
        "scheduler": scheduler(pipe),
        "guidance": settings.model.arguments.get("guidance_scale"),
        "device": known["device"],
        "versions": known["versions"],
        "git_sha": known["git_sha"],
    }


def scheduler(pipe: Any) -> str:
    """The pipeline's scheduler and its shift of the noise levels: UniPCMultistepScheduler, shift 3."""
    config = pipe.scheduler.config
    shift = config.get("flow_shift", config.get("shift"))
    words = "dynamic shift" if config.get("use_dynamic_shifting") else None if shift is None else f"shift {shift:g}"
    return ", ".join(filter(None, [type(pipe.scheduler).__name__, words]))


def check_writable(path: Path) -> None:
    """Refuse before anything is measured what could not be written afterwards.

    Raises:
        UserError: the folder is read-only.
    """
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(place, os.W_OK):
        raise UserError(f"cannot write to {place}: change its permissions")


def write(path: Path, constants: dict[str, Any]) -> None:
    """Write the constants as JSON, each key and each list in one line."""
    from spectrum_bench.sampling.records import sweep, write_atomically

    sweep(path.parent)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in constants.items()]
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
