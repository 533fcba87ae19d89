"""A cross of two factors, such as schedules and forecasters at one budget: a matrix of mean scores, and how much of the
differences between its cells each factor explains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectrum_bench.errors import UserError
from spectrum_bench.reporting.formats import pipe_table
from spectrum_bench.reporting.plots import heat_map
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.results import load

RESAMPLES = 2000
BETWEEN = "--"  # in the name of a run: <schedule>--<forecaster>

Scores = NDArray[np.floating]


@dataclass(frozen=True)
class Shares:
    """The parts of the sum of squares of a two-way table of means that its rows, its columns and their interaction
    explain. They add to 1."""

    rows: float
    columns: float
    interaction: float


@dataclass(frozen=True)
class Cross:
    """A full cross.

    Attributes:
        scores: (P, R, C), of each prompt in each cell.
        low, high: the 95 % interval of each share over prompts.
    """

    metric: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    scores: Scores
    shares: Shares
    low: Shares
    high: Shares


def shares(means: Scores) -> Shares:
    """Two-way analysis of variance without replication, (R, C): sums of squares of the row means, of the column means
    and of what they leave, over the total."""
    grand = means.mean()
    across, down = means.mean(1) - grand, means.mean(0) - grand
    left = means - grand - across[:, None] - down
    parts = np.array([means.shape[1] * (across**2).sum(), means.shape[0] * (down**2).sum(), (left**2).sum()])
    total = parts.sum()
    return Shares(*(parts / total).tolist()) if total > 0 else Shares(0.0, 0.0, 0.0)


def cross(scores: Mapping[tuple[str, str], Scores], metric: str) -> Cross:
    """The cross of the scores of each (row, column), a value for each prompt in the same order.

    Raises:
        UserError: a cell is missing, or there is only one row or column.
    """
    rows, columns = (tuple(dict.fromkeys(key[i] for key in scores)) for i in (0, 1))
    lacking = [f"{row}{BETWEEN}{column}" for row in rows for column in columns if (row, column) not in scores]
    if lacking or min(len(rows), len(columns)) < 2:
        raise UserError(f"no full cross: {f'there is no {lacking[0]}' if lacking else 'one row or column'}")
    cube = np.stack([np.stack([scores[row, column] for column in columns], 1) for row in rows], 1)
    draws = np.random.default_rng(0).integers(0, len(cube), (RESAMPLES, len(cube)))
    drawn = np.array([list(vars(shares(cube[draw].mean(0))).values()) for draw in draws])
    low, high = (Shares(*np.quantile(drawn, q, axis=0).tolist()) for q in (0.025, 0.975))
    return Cross(metric, rows, columns, cube, shares(cube.mean(0)), low, high)


def read(experiments: Sequence[Experiment], reference: Experiment, metric: str) -> Cross:
    """The cross of scored runs whose names are <row>--<column>.

    Raises:
        UserError: a run is not scored by the metric, or the runs are no full cross.
    """
    tables = {}
    for experiment in experiments:
        first, between, second = experiment.name.partition(BETWEEN)
        table, _ = load(experiment, reference)
        if not between or metric not in table:
            raise UserError(f"{experiment.folder}: its name is no <row>{BETWEEN}<column>, or it has no {metric}")
        tables[first, second] = table[metric]
    common = sorted(set.intersection(*(set(each.dropna().index) for each in tables.values())))
    if not common:
        raise UserError(f"the runs have no sample in common that {metric} was computed of")
    return cross({key: each.loc[common].to_numpy(float) for key, each in tables.items()}, metric)


def files(result: Cross, what: tuple[str, str]) -> dict[str, bytes]:
    """cross.md, cross.csv, and cross.png and .svg.

    Args:
        what: the names of the two factors.
    """
    metric = METRICS[result.metric]
    means = metric.factor * result.scores.mean(0)
    frame = pd.DataFrame(means, index=pd.Index(result.rows, name=what[0]), columns=result.columns)
    text = f"{_table(frame, metric.digits)}\n\n{words(result, what)}\n"
    drawings = heat_map(means, result.rows, result.columns, metric.title, metric.digits, metric.higher_is_better)
    drawn = {f"cross.{kind}": data for kind, data in drawings.items()}
    return {"cross.md": text.encode(), "cross.csv": frame.to_csv(float_format="%.6g").encode(), **drawn}


def words(result: Cross, what: tuple[str, str]) -> str:
    """The shares in a sentence."""
    named = [(what[0], "rows"), (what[1], "columns"), ("their interaction", "interaction")]
    parts = [
        f"{name} {100 * getattr(result.shares, key):.0f} % "
        f"[{100 * getattr(result.low, key):.0f}, {100 * getattr(result.high, key):.0f}]"
        for name, key in named
    ]
    return (
        f"Of the differences between the {len(result.rows) * len(result.columns)} means of "
        f"{METRICS[result.metric].label} ({len(result.scores)} samples) explain: {', '.join(parts)}. Shares of the sum "
        "of squares of the table of means; in brackets 95 % bootstrap intervals over samples."
    )


def _table(frame: pd.DataFrame, digits: int) -> str:
    """The means with those of rows and columns."""
    whole = frame.assign(mean=frame.mean(axis=1))
    whole.loc["mean"] = whole.mean()
    return pipe_table(whole.map(lambda value: f"{value:.{digits}f}").rename_axis(frame.index.name).reset_index())
