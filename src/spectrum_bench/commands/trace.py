"""trace: sample without caching, and keep what is needed to replay any schedule and linear forecaster."""

from pathlib import Path

from omegaconf import DictConfig

from spectrum_bench.commands.calibrate import check_writable, origin
from spectrum_bench.commands.compose import build
from spectrum_bench.commands.run import prepare
from spectrum_bench.sampling.identity import labels
from spectrum_bench.sampling.limits import check_path


def main(cfg: DictConfig) -> None:
    """Write the traces of a model's dev prompts.

    Raises:
        UserError: the pipeline's scheduler draws noise, or the algorithm's site stores no features.
    """
    path = Path(check_path("trace", cfg.trace))
    check_writable(path)
    settings, prompts = prepare(cfg)
    site = build(settings).site
    from spectrum_bench.lab import traces
    from spectrum_bench.lab.uncached import Uncached
    from spectrum_bench.sampling.jobs import make_jobs
    from spectrum_bench.sampling.models import open_pipeline

    T, count = settings.num_inference_steps, len(prompts.lines)
    print(f"{count} prompts: {count * T} network passes, {count * (T + 1) ** 2 * 8 / 1000:.0f} KB", flush=True)
    pipe, device = open_pipeline(settings)
    model = Uncached(pipe, T, settings.model.arguments)
    made = []
    for job in traces.seeded(make_jobs(prompts.lines, settings.seed, {})):
        made.append(traces.trace(model, job, site))
        print(f"{len(made)}/{count}  {job.prompt[:80]}", flush=True)
    about = origin(settings, count, device, pipe) | {"source": f"python src/trace.py model={settings.model.name}"}
    about["site"] = labels(settings)["site"]  # of the features
    traces.write(path, made, about)
    print(f"written to {path}: src/replay.py model={settings.model.name} reads it")
