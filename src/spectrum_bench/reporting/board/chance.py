"""Which rows of a table are better than others by more than chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrum_bench.scoring.metrics import METRICS

DRAWS = 2000
FEWEST = 10  # prompts; fewer tell nothing about an order
Line = Mapping[str, str]


def beaten(rows: Sequence[Line], scores: Sequence[Line], names: Sequence[str]) -> list[dict[str, list[int]] | None]:
    """For each row, the rows that beat it: metric -> their places in the table.

    A row beats another if it is a method that is not withdrawn and has the better mean in 97.5 % of the draws of the
    prompts with replacement, the same draws for both. No correction for the number of pairs is made. How many passes
    the rows take plays no part: who reads them picks a budget.

    Args:
        rows: the lines of table.csv.
        scores: the lines of prompts.csv; without them, or with fewer than FEWEST prompts, nothing can be told.
    """
    unknown: list[dict[str, list[int]] | None] = [None] * len(rows)
    places = {row["experiment"]: i for i, row in enumerate(rows)}
    compared = [row["role"] == "method" and not row.get("withdrawn") for row in rows]
    prompts = sorted({int(line["prompt_index"]) for line in scores})
    if len(prompts) < FEWEST or not any(compared):
        return unknown
    losses: list[dict[str, list[int]] | None] = [{} if one else None for one in compared]
    for name in names:
        values = by_row(scores, name, places, prompts)
        if values is None:
            continue
        better = wins(values if METRICS[name].higher_is_better else -values)
        for i, own in enumerate(losses):
            if own is not None and not np.isnan(values[:, i]).any():
                own[name] = np.flatnonzero(better[:, i] & compared).tolist()
    return losses


def by_row(scores: Sequence[Line], name: str, places: Mapping[str, int], prompts: Sequence[int]) -> NDArray[Any] | None:
    """Scores by prompt and row, the mean over seeds; NaN where one is missing; None if the metric was not computed."""
    if not scores or name not in scores[0]:
        return None
    index = {prompt: i for i, prompt in enumerate(prompts)}
    sums, counts = np.zeros((len(prompts), len(places))), np.zeros((len(prompts), len(places)))
    for line in scores:
        if line[name] and line["experiment"] in places:
            cell = index[int(line["prompt_index"])], places[line["experiment"]]
            sums[cell] += float(line[name])
            counts[cell] += 1
    with np.errstate(invalid="ignore"):
        means: NDArray[Any] = sums / np.where(counts, counts, np.nan)
    return means if counts.any() else None


def wins(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether row i has a higher mean than row j in nearly all draws: (rows, rows) of values by (prompts, rows)."""
    n = len(values)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    means = weights @ values
    return np.stack([(means[:, [i]] > means).mean(axis=0) >= 0.975 for i in range(values.shape[1])])
