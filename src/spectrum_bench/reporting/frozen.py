"""Gates as they decide beside their frozen schedules: the paired difference of each, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from spectrum_bench.errors import UserError
from spectrum_bench.reporting.cells import DASH
from spectrum_bench.reporting.formats import pipe_table
from spectrum_bench.reporting.plots import differences
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.results import load
from spectrum_bench.scoring.stats import Estimate, by_prompt, estimate, holm, sign_flip

# What stands at the end of the name of a run that replays a schedule of the run without it, and what that schedule is.
REPLAYS = {"-frozen": "chosen most often", "-consensus": "steps computed most often"}


@dataclass(frozen=True)
class Pair:
    """A gate and a frozen schedule of it on the same samples.

    Attributes:
        schedule: one of REPLAYS.
        difference: the frozen schedule's score less the gate's.
        masks: how many different choices of steps the gate made.
        same: on how many samples the gate chose the very steps of the frozen schedule.
        p_holm: two-sided, by flipping signs, corrected for the number of pairs.
    """

    name: str
    schedule: str
    gate: float
    frozen: float
    difference: Estimate
    gate_passes: float
    frozen_passes: float
    masks: int
    same: int
    samples: int
    p_holm: float = 1.0


def pairs(experiments: Sequence[Experiment], reference: Experiment, metric: str) -> list[Pair]:
    """The pairs among the runs, in the order of their names.

    Raises:
        UserError: there is no pair, a run is not scored by the metric, or a pair shares no sample.
    """
    runs = {experiment.name: experiment for experiment in experiments}
    partners = [(name, end) for name in sorted(runs) for end in REPLAYS if f"{name}{end}" in runs]
    if not partners:
        raise UserError(
            f"no run has a partner whose name ends in {next(iter(REPLAYS))}: bash scripts/frozen.sh makes both"
        )
    made, p = [], []
    for name, end in partners:
        pair, values = _pair(name, end, runs[name], runs[f"{name}{end}"], reference, metric)
        made.append(pair)
        p.append(sign_flip(values) if np.any(values) else 1.0)
    corrected = holm(p)
    return [replace(pair, p_holm=each) for pair, each in zip(made, corrected, strict=True)]


def _pair(
    name: str, end: str, gate: Experiment, frozen: Experiment, reference: Experiment, metric: str
) -> tuple[Pair, np.ndarray]:
    tables = [load(each, reference)[0] for each in (gate, frozen)]
    if any(metric not in table for table in tables):
        raise UserError(f"{gate.folder} and {frozen.folder} are not both scored by {metric}")
    keys = sorted(set(tables[0].index) & set(tables[1].index))
    if not keys:
        raise UserError(f"{gate.folder} and {frozen.folder} have no sample in common")
    scores = [table.loc[keys, metric].to_numpy(float) for table in tables]
    prompts = [gate.by_key[key].subject for key in keys]
    difference = estimate(scores[1] - scores[0], prompts)
    if difference is None:
        raise UserError(f"{metric} of {gate.folder} or {frozen.folder} could not be computed")
    records = [[each.by_key[key] for key in keys] for each in (gate, frozen)]
    passes = [float(np.mean([record.nfe for record in of])) for of in records]
    steps = [tuple(record.computed_steps) for record in records[0]]
    same = steps.count(tuple(records[1][0].computed_steps))
    means = [float(each.mean()) for each in scores]
    taken = (passes[0], passes[1], len(set(steps)), same, len(keys))
    pair = Pair(name, REPLAYS[end], means[0], means[1], difference, *taken)
    return pair, by_prompt(scores[1] - scores[0], prompts)


def files(found: Sequence[Pair], metric: str) -> dict[str, bytes]:
    """frozen.md, frozen.csv, and frozen.png and .svg."""
    frame = pd.DataFrame(
        [
            {key: value for key, value in vars(pair).items() if key != "difference"}
            | {"difference": pair.difference.mean, "low": pair.difference.low, "high": pair.difference.high}
            for pair in found
        ]
    )
    drawn = {
        f"frozen.{kind}": data
        for kind, data in differences(
            {f"{pair.name}: {pair.schedule}": pair.difference for pair in found},
            METRICS[metric].factor,
            f"{METRICS[metric].label}, frozen less as it decides",
        ).items()
    }
    text = f"{_table(found, metric)}\n\n{words(found, metric)}\n"
    return {"frozen.md": text.encode(), "frozen.csv": frame.to_csv(index=False, float_format="%.6g").encode(), **drawn}


def words(found: Sequence[Pair], metric: str) -> str:
    """What the pairs show together, in a sentence."""
    better = [pair for pair in found if pair.p_holm < 0.05 and pair.difference.mean > 0]
    worse = [pair for pair in found if pair.p_holm < 0.05 and pair.difference.mean < 0]
    mean = float(np.mean([pair.difference.mean for pair in found]))
    factor = METRICS[metric].factor
    neither = len(found) - len(better) - len(worse)
    return (
        f"Of {len(found)} frozen schedules {len(better)} are better than their gate by more than chance, {len(worse)} "
        f"worse, and {neither} tell no difference (signs flipped at random, Holm's correction); the mean difference in "
        f"{METRICS[metric].label} is {factor * mean:+.2f}. Schedules: *chosen most often* on other prompts, which may "
        "have another number of passes than the gate takes in the mean, and *steps computed most often* there, as many "
        "as the gate takes in the mean. Masks: the different choices of steps that the gate made on these samples; "
        "same: the samples on which it chose the very steps of the schedule."
    )


def _table(found: Sequence[Pair], metric: str) -> str:
    factor, digits = METRICS[metric].factor, METRICS[metric].digits
    lines = []
    for pair in found:
        d = pair.difference
        bounds = () if d.low is None or d.high is None else (factor * d.low, factor * d.high)
        span = f" <sub>[{bounds[0]:+.{digits}f}, {bounds[1]:+.{digits}f}]</sub>" if bounds else ""
        lines.append(
            [
                pair.name,
                pair.schedule,
                f"{factor * pair.gate:.{digits}f}",
                f"{factor * pair.frozen:.{digits}f}",
                f"{factor * d.mean:+.{digits}f}{span}",
                f"{pair.p_holm:.2g}" if pair.p_holm < 1 else DASH,
                f"{round(pair.gate_passes, 2):g}",
                f"{round(pair.frozen_passes, 2):g}",
                f"{pair.masks} of {pair.samples}",
                str(pair.same),
            ]
        )
    titles = [
        "Gate",
        "Schedule",
        "As it decides",
        "Frozen",
        f"Difference, {METRICS[metric].label}",
        "p",
        "Passes",
        "Passes frozen",
        "Masks",
        "Same",
    ]
    return pipe_table(pd.DataFrame(lines, columns=titles))
