"""Replay of the computed steps of real runs: does it rank methods as the runs do?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from spectrum_bench import forecasters
from spectrum_bench.caching.algorithm import check_arguments
from spectrum_bench.caching.sites.corrected import Corrected
from spectrum_bench.caching.sites.solver import Solver
from spectrum_bench.errors import DoesNotFit, UserError
from spectrum_bench.forecasters import Forecaster
from spectrum_bench.lab.replay import Assumed, by_solver, decibels, forecast, latent_errors
from spectrum_bench.lab.traces import Trace
from spectrum_bench.schedules import Starts
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.results import SUMMARY, read_summary

Floats = NDArray[np.float64]
WHERE = f"{forecasters.__name__}."  # only what stands there is replayed: a received config.yaml runs no other code


@dataclass
class Runs:
    """Replayed runs.

    Attributes:
        errors: a run's name -> (P, T) relative squared errors of the latents, for each trace.
        psnr: a run's name -> its PSNR in dB.
        left_out: a run's name -> why it is not among them.
    """

    errors: dict[str, Floats] = field(default_factory=dict)
    psnr: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def correlation(self) -> float:
        """Spearman's, of the replayed error of the last latent with PSNR; 1: the same order."""
        replayed = [-decibels(each[:, -1]).mean() for each in self.errors.values()]
        return float(spearmanr(replayed, list(self.psnr.values())).statistic)


def replayed_runs(experiments: Sequence[Experiment], traces: Sequence[Trace]) -> Runs:
    """Replay the steps that each run computed, a mean over its samples."""
    runs = Runs()
    for experiment in experiments:
        try:
            score = read_summary(experiment.folder / SUMMARY)["metrics"].get("psnr", {}).get("mean")
            if score is None or experiment.is_full:
                raise DoesNotFit("it skips no step" if experiment.is_full else "it has no PSNR")
            runs.errors[experiment.name] = _replayed(experiment, traces)
            runs.psnr[experiment.name] = score
        except FileNotFoundError:
            runs.left_out[experiment.name] = f"it is not scored: python src/evaluate.py {experiment.folder}"
        except UserError as reason:
            runs.left_out[experiment.name] = str(reason)
    return runs


def _replayed(experiment: Experiment, traces: Sequence[Trace]) -> Floats:
    T = len(traces[0].matrix) - 1
    if experiment.steps != T:
        raise DoesNotFit(f"it takes {experiment.steps} steps and the traces {T}")
    masks = {tuple(record.computed_steps) for record in experiment.records}
    starts = traces[0].starts
    each = [latent_errors(traces, _assumed(experiment.config, list(steps), T, starts)) for steps in masks]
    mean: Floats = np.mean(each, axis=0)
    return mean


def _assumed(config: Mapping[str, Any], steps: list[int], T: int, starts: Starts) -> Assumed:
    """What the run's method assumes. It is found by its names: nothing in config.yaml is called.

    Raises:
        DoesNotFit: its forecast does not follow from its steps alone.
    """
    site, forecaster = config.get("site") or {}, _forecaster((config.get("algo") or {}).get("forecaster") or {})
    target = str(site.get("_target_"))
    if "peers" in target or "FittedSolver" in target:
        raise DoesNotFit("its forecast does not follow from its steps alone")
    if target.endswith(f".{Solver.__name__}"):
        return by_solver(forecaster, steps, T, starts)
    strength = site.get("strength", 1.0) if target.endswith(f".{Corrected.__name__}") else 0.0
    return forecast(forecaster, steps, T, float(strength), starts)


def _forecaster(node: Mapping[str, Any]) -> Forecaster:
    target = str(node.get("_target_"))
    function = getattr(forecasters, target.removeprefix(WHERE), None)
    constants = {key: value for key, value in node.items() if key not in ("_target_", "_partial_", "revision")}
    plain = all(isinstance(value, (int, float)) for value in constants.values())
    if not target.startswith(WHERE) or not callable(function) or not plain or "progress" in constants:
        raise DoesNotFit("its forecaster is none that replay knows")
    forecaster: Forecaster = partial(function, **constants)
    check_arguments(forecaster, np.arange(3.0), 4.0)
    return forecaster
