"""tune: one trial of a search for a method's settings under a budget of passes."""

import json
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from spectrum_bench.checks import number
from spectrum_bench.commands.compose import build, settings_of
from spectrum_bench.commands.run import prepare
from spectrum_bench.sampling.identity import headline, identity, labels
from spectrum_bench.sampling.jobs import Job, make_jobs
from spectrum_bench.sampling.settings import RunSettings

if TYPE_CHECKING:
    from spectrum_bench.lab.tune import References

_MADE: dict[str, "References"] = {}  # the newest trial's: a search runs many trials in one process


def main(cfg: DictConfig) -> float:
    """The value of a trial; see `spectrum_bench.lab.tune.trial`.

    Raises:
        UserError: a value is bad, or the algorithm does not fit the model.
    """
    most = number("passes", cfg.passes, 1)
    algorithm = build(settings_of(cfg))
    settings, prompts = prepare(cfg)
    from spectrum_bench.lab.tune import trial

    jobs = make_jobs(prompts.lines, settings.seed, {})
    result = trial(references(settings, jobs), algorithm, settings, jobs, most)
    note = "" if result.value == result.quality else ", too many"
    print(
        f"{headline(settings.model.name, labels(settings))}: {result.passes:g} passes, {result.quality:.2f} dB{note}",
        flush=True,
    )
    return result.value


def references(settings: RunSettings, jobs: list[Job]) -> "References":
    """The uncached samples that trials are compared with. They are made again only for another model, runtime or list
    of prompts."""
    from spectrum_bench.lab.tune import References

    who = {key: value for key, value in identity(settings).items() if key not in ("schedule", "forecaster", "site")}
    key = json.dumps([who, settings.device, settings.threads, [(job.prompt, job.seed) for job in jobs]])
    if key not in _MADE:
        _MADE.clear()
        _MADE[key] = References(settings, jobs)
    return _MADE[key]
