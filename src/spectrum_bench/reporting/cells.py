"""The cells of a table: rounded numbers with small print beside them, and dashes with reasons."""

import itertools
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from spectrum_bench.reporting.rows import Comparison, Difference, Row, Table
from spectrum_bench.sampling.cost import tera
from spectrum_bench.scoring.metrics import METRICS

DASH = "—"
NAMES = {  # of rows that are no methods
    "reference": "reference",
    "noise floor": "reference re-run (noise floor)",
    "harness": "reference through a session (the harness itself)",
}
BEFORE = ("Method", "Schedule", "Granularity", "Passes", "Latency s", "Speedup", "TFLOPs", "FLOPs speedup")
AFTER = ("Skipped step ms", "Cache")


@dataclass(frozen=True)
class Cell:
    """One figure of a table."""

    text: str
    small: str = ""  # beside it
    bold: bool = False
    front: bool = False  # on the Pareto front
    reason: str | None = None  # why there is no number
    value: float | None = None  # to sort by


def head(table: Table) -> list[str]:
    """The titles of the columns."""
    return [*BEFORE, *(METRICS[name].title for name in table.metrics), *AFTER]


def body(table: Table) -> list[list[Cell]]:
    """The rows' cells, in the order of `head`."""
    return [[*_setup(row), *_speed(row), *_scores(row, table.metrics), *_caching(row)] for row in table.rows]


def frame(table: Table) -> pd.DataFrame:
    """The cells as a data frame, with the titles as columns."""
    return pd.DataFrame(body(table), columns=head(table), dtype=object)


def told(table: Table) -> pd.DataFrame:
    """The frame without columns that say nothing of any row. A metric without scores stays: its dash says why."""
    full = frame(table)
    silent = [title for title in (*BEFORE, *AFTER) if all(cell.text in (DASH, "-", "none") for cell in full[title])]
    return full.drop(columns=silent)


def marks(table: Table, shown: pd.DataFrame | None = None) -> dict[str, str]:
    """Reason for a dash -> footnote mark, in order of appearance.

    Args:
        shown: the columns whose dashes are looked at; None: all.
    """
    lines = body(table) if shown is None else shown.to_numpy().tolist()
    reasons = dict.fromkeys(cell.reason for cells in lines for cell in cells if cell.reason)
    return dict(zip(reasons, _letters(), strict=False))


def _letters() -> Iterator[str]:
    """a, b, ..., z, aa, ab, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def runtime(row: Row) -> str:
    """The runtime settings that differ from their defaults: batch_size=2, compile=True."""
    return ", ".join(f"{key}={value}" for key, value in row.experiment.runtime.items())


def _setup(row: Row) -> list[Cell]:
    """Method, schedule, granularity and passes."""
    name = NAMES.get(row.role)
    detail = row.algo if name else "" if row.forecaster in ("-", row.algo) else row.forecaster
    (schedule, _, arguments), (site, _, parts) = (text.partition("(") for text in (row.schedule, row.site))
    return [
        Cell(name or row.algo, ", ".join(filter(None, [row.student, detail, runtime(row)]))),
        Cell(schedule, arguments.removesuffix(")")),
        Cell("none" if row.site == "-" else site, parts.removesuffix(")")),
        _number(row.costs.passes, lambda _: row.passes, row.costs.not_told),
    ]


def _speed(row: Row) -> list[Cell]:
    """Latency and speedup, operations and what they would give."""
    costs, speedup = row.costs, row.costs.speedup
    p90 = f"p90 {_seconds(costs.latency_p90_s)}" if costs.latency_p90_s is not None else ""
    bounds = ""
    if speedup and speedup.low is not None and speedup.high is not None and row.role != "reference":
        bounds = f"[{speedup.low:.2f}, {speedup.high:.2f}]"
    return [
        _number(costs.latency_s, _seconds, costs.no_latency, p90),
        _number(speedup.mean if speedup else None, _times, costs.no_speedup, bounds),
        _number(costs.flops, tera, costs.no_flops),
        _number(costs.flops_speedup, _times, costs.no_flops),
    ]


def _scores(row: Row, metrics: list[str]) -> list[Cell]:
    return [_score(row, name) for name in metrics]


def _score(row: Row, name: str) -> Cell:
    if name not in row.results:
        return Cell(DASH, reason=row.missing[name])
    factor, digits, result = METRICS[name].factor, METRICS[name].digits, row.results[name]
    mean, low, high = result.estimate.mean, result.estimate.low, result.estimate.high
    bounds = ""
    if low is not None and high is not None:
        bounds = f"[{factor * low:.{digits}f}, {factor * high:.{digits}f}]"
    return Cell(f"{factor * mean:.{digits}f}", bounds, result.best, result.front, value=mean)


def _caching(row: Row) -> list[Cell]:
    """The skipped step and the cache."""
    costs, share = row.costs, ""
    if costs.skipped_step_s is not None and costs.full_step_s is not None:
        share = f"{100 * costs.skipped_step_s / costs.full_step_s:.0f} %"
    peak = f"GPU peak {_bytes(costs.peak_memory_bytes)}" if costs.peak_memory_bytes else ""
    return [
        _number(costs.skipped_step_s, lambda seconds: f"{1e3 * seconds:.2f}", costs.no_skipped_step, share),
        _number(costs.cache_bytes, _bytes, costs.not_told, peak),
    ]


def _number(value: float | None, write: Callable[[float], str], reason: str, small: str = "") -> Cell:
    return Cell(DASH, reason=reason) if value is None else Cell(write(value), small, value=value)


def differences(table: Table, comparison: Comparison) -> list[tuple[Row, list[Cell]]]:
    """A line for each method and a cell for each metric, with mean difference, interval, corrected p and wins. A
    difference of more than chance is bold."""
    by_row: dict[Row, dict[str, Difference]] = {}
    for difference in comparison.differences:
        by_row.setdefault(difference.row, {})[difference.metric] = difference
    compared = [row for row in table.rows if row in by_row]
    return [(row, [_difference(by_row[row].get(name)) for name in table.metrics]) for row in compared]


def _difference(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(DASH)
    metric, estimate, bounds = METRICS[difference.metric], difference.estimate, ""
    factor, digits = metric.factor, metric.digits
    if estimate.low is not None and estimate.high is not None:
        bounds = f"[{factor * estimate.low:+.{digits}f}, {factor * estimate.high:+.{digits}f}], "
    small = f"{bounds}p {difference.p_holm:.2g}, wins {100 * difference.wins:.0f} %"
    real = difference.verdict in ("better", "worse")
    text = f"{factor * estimate.mean:+.{digits}f}" + ("" if real else f" ({difference.verdict})")
    return Cell(text, small, real, value=estimate.mean)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def _bytes(count: float) -> str:
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
