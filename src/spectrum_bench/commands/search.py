"""search: the best steps for an algorithm's forecaster, written where schedule=searched reads them."""

from omegaconf import DictConfig

from spectrum_bench.checks import whole
from spectrum_bench.commands.calibrate import check_writable, origin, write
from spectrum_bench.commands.compose import build, settings_of
from spectrum_bench.commands.run import prepare
from spectrum_bench.errors import UserError
from spectrum_bench.paths import CALIBRATION
from spectrum_bench.sampling.identity import labels


def main(cfg: DictConfig) -> None:
    """Find masks from traces, compare them in real runs, and write the best one.

    Raises:
        UserError: the algorithm's forecast does not follow from its steps alone.
    """
    settings = settings_of(cfg)
    passes = whole("passes", cfg.passes, 2, settings.num_inference_steps - 1)
    algorithm = build(settings)
    if algorithm.site is None or algorithm.site.decides:
        raise UserError(f"algo={algorithm.name} has no forecaster that steps could be searched for: name another algo")
    path = CALIBRATION / "searched" / str(passes) / algorithm.name / f"{settings.model.name}.json"
    check_writable(path)
    settings, prompts = prepare(cfg)
    from spectrum_bench.lab.searched import find
    from spectrum_bench.lab.uncached import Uncached
    from spectrum_bench.sampling.jobs import make_jobs
    from spectrum_bench.sampling.models import open_pipeline

    pipe, device = open_pipeline(settings)
    model = Uncached(pipe, settings.num_inference_steps, settings.model.arguments)
    found = find(model, algorithm, make_jobs(prompts.lines, settings.seed, {}), passes)
    words = {key: value for key, value in labels(settings).items() if key in ("forecaster", "site")}
    about = origin(settings, len(prompts.lines), device, pipe) | words
    about["source"] = f"python src/search.py algo={algorithm.name} model={settings.model.name} passes={passes}"
    write(path, about | found)
    print(f"written to {path}: schedule=searched schedule.passes={passes} reads it")
