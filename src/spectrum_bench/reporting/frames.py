"""All figures of a report as data frames. This module alone names the columns of CSV files."""

from collections.abc import Iterator

import pandas as pd

from spectrum_bench.reporting.notes import distinct
from spectrum_bench.reporting.rows import Comparison, Row, Table
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import Estimate

Columns = dict[str, object]
DIFFERENCE_COLUMNS = ["method", "experiment", "baseline", "metric", "difference", "low", "high", "p", "p_holm", "wins"]


def results(table: Table) -> pd.DataFrame:
    """One line for each row, in seconds, bytes, dB and shares. Columns are in the order of their first use."""
    return pd.DataFrame([_row(row) for row in table.rows], dtype=object)


def prompts(table: Table) -> pd.DataFrame:
    """One line for each row and sample: the scores of the sample."""
    metrics = [name for name in table.metrics if METRICS[name].kind != "set"]
    columns = ["prompt_index", "seed", "prompt", "method", "experiment", *metrics]
    return pd.DataFrame([line for row in table.rows for line in _samples(row, metrics)], columns=columns)


def differences(comparison: Comparison) -> pd.DataFrame:
    """One line for each metric and method."""
    lines = []
    for d in comparison.differences:
        names = (d.row.name, d.row.experiment.name, comparison.baseline.experiment.name, d.metric)
        lines.append((*names, d.estimate.mean, d.estimate.low, d.estimate.high, d.p, d.p_holm, d.wins))
    return pd.DataFrame(lines, columns=DIFFERENCE_COLUMNS, dtype=object)


def _row(row: Row) -> Columns:
    first, costs = row.records[0], row.costs
    return {
        "role": row.role,
        "experiment": row.experiment.name,
        "algo": row.algo,
        "forecaster": row.forecaster,
        "schedule": row.schedule,
        "site": row.site,
        "steps": costs.steps,
        "passes": costs.passes,
        "samples": len(row.records),
        "prompts": row.prompt_count,
        "device": first.device,
        "git_sha": distinct(record.git_sha for record in row.records),
        "latency_s": costs.latency_s,
        "latency_p90_s": costs.latency_p90_s,
        "full_step_s": costs.full_step_s,
        "skipped_step_s": costs.skipped_step_s,
        "cache_bytes": costs.cache_bytes,
        "peak_memory_bytes": costs.peak_memory_bytes,
        "flops": costs.flops,
        "flops_speedup": costs.flops_speedup,
        **(_estimate("speedup", costs.speedup) if costs.speedup else {"speedup": None}),
        **_scores(row),
        **_differences_from_best(row),
    }


def _scores(row: Row) -> Columns:
    columns: Columns = {}
    for name in row.metrics:
        result = row.results.get(name)
        columns |= _estimate(name, result.estimate if result else None)
        columns[f"{name}_best"] = bool(result and result.best)
        columns[f"{name}_front"] = bool(result and result.front)
        if result and METRICS[name].own and row.role != "reference":
            columns |= _estimate(f"{name}_minus_reference", result.minus_reference)
    return columns


def _differences_from_best(row: Row) -> Columns:
    columns: Columns = {}
    for name, result in row.results.items():
        if result.minus_best:
            columns |= _estimate(f"{name}_minus_best", result.minus_best)
    return columns


def _estimate(name: str, estimate: Estimate | None) -> Columns:
    mean, low, high = (estimate.mean, estimate.low, estimate.high) if estimate else (None, None, None)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _samples(row: Row, metrics: list[str]) -> Iterator[tuple[object, ...]]:
    for i, record in enumerate(row.records):
        scores = (row.scores[name][i] for name in metrics)
        yield (record.prompt_index, record.seed, record.prompt, row.name, row.experiment.name, *scores)
