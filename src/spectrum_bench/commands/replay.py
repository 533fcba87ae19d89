"""replay: the errors that a schedule and a forecaster would make, from traces."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from spectrum_bench.commands.compose import build, settings_of
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.identity import labels
from spectrum_bench.sampling.limits import check_path
from spectrum_bench.sampling.models import identify
from spectrum_bench.sampling.settings import RunSettings

if TYPE_CHECKING:
    from spectrum_bench.lab.traces import Trace


def main(cfg: DictConfig) -> None:
    """Print the error of the composed algorithm beside what others make of the same steps; with `against`, compare
    replay with real runs.

    Raises:
        UserError: there are no traces of this model, or the algorithm decides while the model runs.
    """
    settings = settings_of(cfg)
    out = Path(check_path("out", cfg.out)) if cfg.out is not None else None
    traces, about = traced(settings, Path(check_path("trace", cfg.trace)))
    if cfg.against is not None:
        return compare(Path(check_path("against", cfg.against)), traces, out)
    from spectrum_bench.lab import replay
    from spectrum_bench.schedules import plan

    algorithm, T = build(settings), settings.num_inference_steps
    mask = plan(algorithm.schedule, T, traces[0].starts)
    if mask is None:
        raise UserError(
            f"algo={algorithm.name} decides while the model runs: give a schedule= that is known before, or replay its "
            "runs with against=<folder>"
        )
    steps = mask.nonzero()[0].tolist()
    print(f"{settings.model.name}, {len(traces)} prompts; {len(steps)} of {T} passes: {' '.join(map(str, steps))}\n")
    show(replay.beside(algorithm, steps, traces), out)
    if traces[0].features is not None and about.get("site") == labels(settings)["site"]:
        errors = replay.feature_errors(traces, replay.forecast(algorithm.forecaster, steps, T, starts=traces[0].starts))
        skipped = replay.decibels(errors.mean(0)[~mask])
        print(
            f"\nfeatures of {about['site']} at the skipped steps: error {skipped.mean():.1f} dB in the mean, ", end=""
        )
        print(f"{skipped.max():.1f} dB at step {(~mask).nonzero()[0][skipped.argmax()]}" if len(skipped) else "none")


def traced(settings: RunSettings, path: Path) -> "tuple[list[Trace], dict[str, Any]]":
    """The traces in a file, which must be of this model and number of steps, and what they are of.

    Raises:
        UserError: there are none, or they are of another one.
    """
    make = f"python src/trace.py model={settings.model.name} num_inference_steps={settings.num_inference_steps}"
    if not path.exists():
        raise UserError(f"there is no {path}: {make}")
    from spectrum_bench.lab.traces import read

    traces, about = read(path)
    here: dict[str, Any] = {"weights": identify(settings.model), "steps": settings.num_inference_steps}
    here["guidance"] = settings.model.arguments.get("guidance_scale")
    for key, value in here.items():
        if about.get(key) != value:
            raise UserError(f"{path} was traced with {key}={about.get(key)}, not {value}: {make} trace={path}")
    return traces, about


def show(errors: "Mapping[str, Any]", out: Path | None) -> None:
    """Print a line a row, and write replay.csv and replay.png and .svg.

    Args:
        errors: a row's name -> (P, T) or (P,) relative squared errors of the latents.
    """
    import pandas as pd

    from spectrum_bench.lab.replay import decibels
    from spectrum_bench.reporting.plots import errors_by_step
    from spectrum_bench.sampling.records import write_atomically
    from spectrum_bench.sampling.text import to_cell

    last = {name: decibels(each[:, -1] if each.ndim == 2 else each) for name, each in errors.items()}
    table = pd.DataFrame(
        {"error of the last latent, dB": {name: each.mean() for name, each in last.items()}}
        | {"worst prompt": {name: each.max() for name, each in last.items()}}
    )
    print(table.to_string(float_format="{:.1f}".format))
    if out is None:
        return
    lines = {name: decibels(each).mean(0) for name, each in errors.items() if each.ndim == 2}
    write_atomically(
        out / "replay.csv", table.rename(index=to_cell).to_csv(index_label="row", float_format="%.2f").encode()
    )
    for kind, data in errors_by_step(lines).items():
        write_atomically(out / f"replay.{kind}", data)
    print(f"\nwritten to {out}: replay.csv, replay.png, replay.svg")


def compare(folder: Path, traces: "list[Trace]", out: Path | None) -> None:
    """Replay the computed steps of real runs, and say how well replay ranks them.

    Raises:
        UserError: fewer than three runs are scored and can be replayed.
    """
    from spectrum_bench.lab.against import replayed_runs
    from spectrum_bench.scoring.experiments import find_experiments, read_experiment

    runs = replayed_runs([read_experiment(path) for path in find_experiments([folder])], traces)
    for name, reason in runs.left_out.items():
        print(f"left out: {name}: {reason}")
    if len(runs.psnr) < 3:
        raise UserError(f"{folder} holds {len(runs.psnr)} scored runs that can be replayed: at least 3 are needed")
    show({f"{name} ({runs.psnr[name]:.1f} dB in runs)": errors for name, errors in runs.errors.items()}, out)
    print(f"\nSpearman's rank correlation of replay with the PSNR of {len(runs.psnr)} runs: {runs.correlation():.2f}")
