"""Make some samples of finished runs anew: are they what the runs' small files say?

usage: python src/verify.py <experiment dir> [<experiment dir> ...] [prompts=4] [device=<device>]

  <experiment dir>  a folder with config.yaml and records.jsonl; the samples may be missing. With metrics.csv the plain
                    pipeline's samples are made too, and PSNR is compared with the one that was sent
  prompts=4         how many samples, spread over all of them
  device=cpu        where; by default a GPU if there is one

The exit code is 3 if a sample is another one. On other hardware the bits differ, and the computed steps and PSNR
(within 0.5 dB) must be as sent. No code runs that a configuration brings: only our own methods, named in it.
"""

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from spectrum_bench.commands import words
from spectrum_bench.commands.compose import build
from spectrum_bench.commands.ending import say
from spectrum_bench.commands.targets import check_targets
from spectrum_bench.errors import SOME_FAILED, UserError
from spectrum_bench.sampling.models import identify
from spectrum_bench.sampling.settings import RunSettings
from spectrum_bench.sampling.text import printable

if TYPE_CHECKING:
    from spectrum_bench.lab.verify import Remade
    from spectrum_bench.scoring.experiments import Experiment

OPTIONS = {"prompts": "4", "device": ""}


def main(argv: list[str]) -> None:
    folders, options = words.parse(argv, __doc__, {**OPTIONS})
    count = words.count("prompts", options["prompts"])
    if options["device"] and not re.fullmatch(r"cpu|cuda(:\d{1,2})?", options["device"]):
        raise UserError(f"device={options['device'][:40]}: write cpu or cuda")
    from spectrum_bench.scoring.experiments import read_experiment

    given = [read_experiment(folder) for folder in folders]
    all_settings = [settings_in(experiment, options["device"] or None) for experiment in given]
    algorithms = [build(settings) for settings in all_settings]
    from spectrum_bench.lab.verify import remake

    good = True
    for experiment, settings, algorithm in zip(given, all_settings, algorithms, strict=True):
        remade = []
        for one in remake(experiment, settings, algorithm, count):
            say(f"{printable(one.record.prompt)[:50]:50}  {describe(one)}")
            remade.append(one)
        kept = sum(one.ok for one in remade)
        say(f"{experiment.folder}: {kept} of {len(remade)} samples are as sent")
        good &= kept == len(remade)
    if not good:
        raise SystemExit(SOME_FAILED)


def settings_in(experiment: "Experiment", device: str | None) -> RunSettings:
    """The settings in a run's config.yaml.

    Raises:
        UserError: they name code that is not ours, or other weights than those on this machine.
    """
    check_targets(experiment.config)
    settings = replace(RunSettings.from_config(experiment.config), device=device)
    here, sent = identify(settings.model), experiment.model.get("weights")
    if here != sent:
        raise UserError(
            f"{experiment.folder} was made with other weights of {settings.model.name} ({str(sent)[:40]}) than "
            f"those on this machine ({here}): fetch the same ones"
        )
    return replace(settings, model=replace(settings.model, weights=here))


def describe(one: "Remade") -> str:
    """One sample, in words."""
    parts = [] if one.named else ["config.yaml is not that of this sample's id"]
    parts.append("the same bits" if one.same_bits else "other bits")
    if one.distance is not None:
        parts.append(f"{one.distance:.1f} dB from the sample sent")
    parts.append("the same steps" if one.same_steps else "OTHER STEPS")
    if one.score is not None and one.sent is not None:
        parts.append(f"PSNR {one.score:.2f} dB, sent {one.sent:.2f}")
    return ", ".join(parts) if one.ok else f"NOT AS SENT: {', '.join(parts)}"
