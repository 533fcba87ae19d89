"""The costs and the results of a row: latency, speedup, memory, and the mean of every metric."""

from typing import Literal

import numpy as np

from spectrum_bench.reporting import notes
from spectrum_bench.reporting.rows import Costs, Result, Row
from spectrum_bench.sampling.cost import Cost, read_cost
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import Estimate, estimate, ratio_interval

Stage = Literal["total", "full_step", "skipped_step"]  # of a record's latency


def measure_costs(row: Row, reference: Row) -> Costs:
    """The costs of a row, including its speedup over the reference."""
    totals, steps = latencies(row, "total"), row.experiment.steps
    passes = float(np.mean([record.nfe for record in row.records])) or None  # 0: nobody told
    unmeasured = notes.NOT_MEASURED if any(record.alone for record in row.records) else notes.BUSY
    unmeasured = notes.NOT_TOLD if row.elsewhere else unmeasured
    incomparable = _incomparable(row, reference)
    cost = read_cost(row.experiment.folder)
    flops = _mean_flops(row, cost)
    return Costs(
        steps,
        passes,
        latency_s=_median(totals),
        latency_p90_s=float(np.quantile(totals, 0.9)) if totals else None,
        full_step_s=_median(latencies(row, "full_step")),
        skipped_step_s=_median(latencies(row, "skipped_step")),
        cache_bytes=None if row.elsewhere else max(record.cache_bytes for record in row.records),
        peak_memory_bytes=max((r.peak_memory_bytes for r in row.records if r.peak_memory_bytes), default=None),
        speedup=None if incomparable else _ratio(latencies(reference, "total"), totals),
        flops=flops,
        flops_speedup=reference.experiment.steps * cost.full_step / flops if cost and flops else None,
        not_told=notes.NOT_TOLD,
        no_flops=notes.NOT_TOLD if row.elsewhere else notes.UNCOUNTED if cost else notes.NOT_COUNTED,
        no_latency=unmeasured,
        no_skipped_step=unmeasured if passes is None or passes < steps else notes.NO_SKIPPED_STEP,
        no_speedup=incomparable or unmeasured,
    )


def _mean_flops(row: Row, cost: Cost | None) -> float | None:
    if cost is None:
        return None
    flops = [cost.flops(record.computed_steps, record.num_inference_steps) for record in row.records]
    known = [each for each in flops if each]
    return float(np.mean(known)) if len(known) == len(flops) else None


def measure_scores(row: Row) -> tuple[dict[str, Result], dict[str, str]]:
    """The result of each metric, and for each metric without a result the reason."""
    results, missing = {}, {}
    for name in row.metrics:
        metric = METRICS[name]
        if row.role != "reference" and (whole := row.digest.sets.get(name)):
            if whole.n == len(row.records):
                results[name] = Result(whole)
            else:
                missing[name] = notes.other_set(name, whole.n, len(row.records))
        elif (mean := estimate(row.scores[name], row.subjects)) is None:
            itself = row.role == "reference" and metric.own is None
            missing[name] = notes.ITSELF if itself else row.digest.unavailable.get(name, notes.NOT_MEASURED)
        elif metric.own and row.role != "reference":
            differences = np.subtract(row.scores[name], row.scores[metric.own])
            results[name] = Result(mean, minus_reference=estimate(differences, row.subjects))
        else:
            results[name] = Result(mean)
    return results, missing


def latencies(row: Row, stage: Stage) -> list[float]:
    """Seconds of a stage, for each sample during which no other program used the device much."""
    seconds = (record.latency.get(stage) for record in row.records if record.alone)
    return [value for value in seconds if value is not None]


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def _ratio(reference: list[float], totals: list[float]) -> Estimate | None:
    """The reference's median latency divided by the row's."""
    if not reference or not totals:
        return None
    ratio = float(np.median(reference)) / float(np.median(totals))
    low, high = ratio_interval(reference, totals) or (None, None)
    return Estimate(ratio, low, high, len(totals))


def _incomparable(row: Row, reference: Row) -> str:
    """Why the latencies of two rows cannot be compared; empty if they can."""
    devices = {record.device for record in (*row.records, *reference.records)}
    if len(devices) > 1:
        return notes.other_devices(devices)
    return "" if row.experiment.runtime == reference.experiment.runtime else notes.OTHER_RUNTIME
