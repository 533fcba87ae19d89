"""run (text_to_image, text_to_video): sample every prompt of a file."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from spectrum_bench.commands.compose import build, calibrated, settings_of
from spectrum_bench.paths import locate
from spectrum_bench.sampling.media import check_ffmpeg
from spectrum_bench.sampling.models import identify
from spectrum_bench.sampling.prompts import Prompts, read_prompt_file, require
from spectrum_bench.sampling.settings import RunSettings
from spectrum_bench.sampling.state import tell_finished

if TYPE_CHECKING:
    from spectrum_bench.sampling.worker import Opener


def main(cfg: DictConfig) -> None:
    """Run one experiment. Everything is checked before a model is loaded; finished samples are not made again."""
    if code := sample(cfg):
        sys.exit(code)


def sample(cfg: DictConfig, opener: "Opener | None" = None) -> int:
    """Run one experiment, and return its exit code; see `spectrum_bench.sampling.run.run`."""
    settings, prompts = prepare(cfg)
    if opener is None and (code := tell_finished(settings, prompts)) is not None:
        return code
    algorithm = build(settings)
    warn_of_other_calibration(cfg, settings)
    from spectrum_bench.sampling.run import run

    return run(settings, algorithm, prompts, opener)


def prepare(cfg: DictConfig) -> tuple[RunSettings, Prompts]:
    """The settings, including the identity of the model's weights, and the prompts.

    Raises:
        UserError: a value is bad, or prompts, weights or ffmpeg are missing.
    """
    settings = settings_of(cfg)
    if settings.model.fps is not None:
        check_ffmpeg()
    prompts = read_prompt_file(locate(settings.prompt_file), settings.total_prompt_num, settings.prompt_column)
    require(prompts, settings.model.needs or (), settings.model.name)
    model = replace(settings.model, weights=identify(settings.model))
    return replace(settings, model=model), prompts


def warn_of_other_calibration(cfg: DictConfig, settings: RunSettings) -> None:
    """Warn if the method's constants were measured on other weights, with another guidance or number of steps."""
    name, model = settings.method.name, settings.model
    here = {
        "weights": model.weights,
        "guidance": model.arguments.get("guidance_scale"),
        "steps": settings.num_inference_steps,
    }
    for key, value in here.items():
        measured = calibrated(cfg.algo.get("calibration", name), key, _root_=cfg)
        if measured not in (None, value):
            what = "other weights" if key == "weights" else f"{key} {measured}, not {value}"
            command = f"python src/calibrate.py algo={name} model={model.name}"
            print(f"the constants of {name} were measured with {what}: {command}", file=sys.stderr)
