"""All prose of a report: why there is no number, what a reader must know to trust a table, and captions."""

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from spectrum_bench.reporting.rows import Row, shared_metrics
from spectrum_bench.sampling.records import read_failures
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.metrics.contracts import Metric

# Reasons for a dash.
ITSELF = "the reference is what the other rows are measured against"
BUSY = (
    "the device did other work meanwhile: no latency. When it is quiet, a run's own words with exp_name=<new name> "
    "total_prompt_num=8 measure it"
)
NOT_MEASURED = "not measured"
NO_SKIPPED_STEP = "no step is skipped"
NOT_COUNTED = "operations are not counted: the run's own command writes cost.json"
NOT_TOLD = "made elsewhere, and nobody told (times=)"
UNCOUNTED = "operations are not counted where other people's code runs, or where skipped steps differ"
OTHER_RUNTIME = "a speedup needs the same runtime"

FRONT = "†"  # the sign of the Pareto front of quality against budget

DIFFERENCES = (
    "Mean paired difference with its 95 % interval over prompts; p by flipping signs at random, corrected for the "
    "number of methods (Holm) in each metric; share of prompts on which the method wins. Bold: more than chance "
    "(p below 0.05)."
)


def other_devices(devices: Iterable[str]) -> str:
    return f"a speedup needs one device, these are {', '.join(sorted(devices))}"


def other_set(metric: str, scored: int, samples: int) -> str:
    return f"{metric}: it is of the whole set of {scored} samples, and this table has {samples} of them"


def uneven(metric: str) -> str:
    return f"{metric}: some rows lack samples that others have"


def footnotes(rows: list[Row], dropped: dict[str, int], align: str) -> list[str]:
    """What a reader must know to trust the table.

    Args:
        dropped: experiment -> number of its samples that some other row lacks.
        align: the budget at which methods are compared: passes, latency or memory.
    """
    reference, others = rows[0], rows[1:]
    return [
        _means(rows, align),
        _conditions(rows),
        *(["So few prompts make for rough intervals and ties."] if reference.prompt_count < 10 else []),
        *_failed(rows),
        *_partly_scored(rows),
        *_dropped(dropped),
        *_identical(others),
        *_twins(others),
        *_time_maps(others),
        *_anchors(others[0]),
        *(f"{METRICS[name].about}." for name in shared_metrics(rows) if METRICS[name].about),
        *_judge(others[0]),
        *([str(note)] if (note := reference.experiment.model.get("note")) else []),
    ]


def _means(rows: list[Row], align: str) -> str:
    reference = rows[0]
    seeds = spans({record.seed for row in rows for record in row.records})
    rivals = f"Of the methods with as {'few passes or fewer' if align == 'passes' else f'little {align} or less'}"
    if align == "passes" and any(row.costs.passes is None for row in rows):
        rivals = "Of the methods, whose passes nobody told"
    return (
        f"Means over {reference.prompt_count} prompts ({len(reference.records)} samples, seed {seeds}) against "
        f"{reference.experiment.name}; in brackets 95 % BCa bootstrap intervals over prompts. {rivals}, bold: none is "
        "better by more than chance, and one is worse by more than chance (paired differences, uncorrected for their "
        f"number); {FRONT}: none has a better mean."
    )


def spans(numbers: Collection[int]) -> str:
    """Whole numbers in words: 1, 2, 5 to 8."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _conditions(rows: list[Row]) -> str:
    records = [record for row in rows for record in row.records]
    count, alone = len(rows[0].records), sum(record.alone for record in rows[0].records)
    samples = f"the samples that ran alone ({alone} of {count})" if 0 < alone < count else "a sample"
    latency = (
        f"Latency is the median of {samples}, beside it the 90th percentile; speedup the ratio of this table's "
        "medians, with a 95 % percentile bootstrap interval"
    )
    device = f"Device: {distinct(record.device for record in records)}."
    if all(row.elsewhere for row in rows):
        if not any(record.latency for record in records):
            return "All samples were made elsewhere, and nobody told their times (times=)."
        return f"{latency}. All samples and times were made elsewhere. {device}"
    versions = {", ".join(f"{package} {number}" for package, number in r.versions.items()) for r in records}
    return (
        f"{latency}; a skipped step in ms and as a share of a full one. TFLOPs are those of a sample's denoiser by "
        f"count, a multiply-add as two; their speedup is over every step computed. {device} Versions: "
        f"{'; '.join(sorted(versions))}. Code: {distinct(record.git_sha for record in records)}."
    )


def _failed(rows: list[Row]) -> list[str]:
    counts = [(row.experiment, len(read_failures(row.experiment.folder))) for row in rows]
    failed = ", ".join(f"{e.name} {count} of {count + len(e.records)}" for e, count in counts if count)
    return [f"Samples that failed, with their reasons in the experiments' failures: {failed}."] if failed else []


def _partly_scored(rows: list[Row]) -> list[str]:
    notes = []
    for name in shared_metrics(rows):
        counts = [(row, int(np.sum(~np.isnan(row.scores[name])))) for row in rows]
        partly = [f"{row.experiment.name} {n} of {len(row.records)}" for row, n in counts if 0 < n < len(row.records)]
        if partly:
            notes.append(f"{METRICS[name].label}: means over the samples that could be scored: {', '.join(partly)}.")
    return notes


def _dropped(dropped: dict[str, int]) -> list[str]:
    left_out = ", ".join(f"{count} of {name}" for name, count in dropped.items())
    return [f"Samples that not every row has are left out: {left_out}."] if dropped else []


def _identical(others: list[Row]) -> list[str]:
    counts = [(row, int(sum(row.scores["identical"]))) for row in others]
    identical = ", ".join(f"{row.experiment.name} {count} of {len(row.records)}" for row, count in counts if count)
    return [f"Identical to the reference in every pixel, counted as 100 dB: {identical}."] if identical else []


def _twins(others: list[Row]) -> list[str]:
    """Rows with the same scores in every digit, and why. Those that equal the reference are told of already."""
    names = shared_metrics(others)
    alike: dict[tuple[bytes, ...], list[Row]] = {}
    for row in others:
        if names and sum(row.scores["identical"]) < len(row.records):
            alike.setdefault(tuple(np.array(row.scores[name]).tobytes() for name in names), []).append(row)
    groups = [rows for rows in alike.values() if len(rows) > 1]
    twins = "; ".join(f"{' = '.join(row.experiment.name for row in rows)} ({_why_alike(rows)})" for rows in groups)
    return [f"Rows that agree in every digit: {twins}."] if twins else []


def _why_alike(rows: list[Row]) -> str:
    pixels = {tuple(record.sha256 for record in row.records) for row in rows}
    steps = {tuple(tuple(record.computed_steps) for record in row.records) for row in rows}
    found = "the same pixels" if len(pixels) == 1 and None not in pixels.pop() else "the same scores"
    if rows[0].elsewhere:
        return found
    if len(steps) > 1:
        return f"{found}, though they do not compute the same steps"
    return f"{found}: they compute the same steps and put the same features into skipped ones"


def _time_maps(rows: list[Row]) -> list[str]:
    """Whether Spectrum's polynomials span as many steps as the published code has written in."""
    steps = sorted(
        {int(n) for row in rows for n in re.findall(r"(?:spectrum|chebyshev_ridge)\(.*steps=(\d+)", row.forecaster)}
    )
    spans = ", ".join(str(n) for n in steps if n != 50)
    return (
        [f"Spectrum's time runs over {spans} steps; the published code has 50 written in (algo.forecaster.steps=50)."]
        if spans
        else []
    )


def _anchors(row: Row) -> list[str]:
    anchors = {"itself": row.digest.itself, "shuffled prompts": row.digest.shuffled}
    lines = [
        f"Sanity, the reference against {what}: {', '.join(f'{name} {score:.4g}' for name, score in scores.items())}."
        for what, scores in anchors.items()
        if scores
    ]
    reason = "Prompts that are much alike explain it, and so does a broken metric."
    return lines + [f"In doubt: {doubt}. {reason}" for doubt in row.digest.doubts]


def _judge(row: Row) -> list[str]:
    if not row.digest.judge:
        return []
    shares = " and ".join(f"{100 * share:.1f} % of pictures {kind}" for kind, share in row.digest.judge.items())
    return [f"The caption judge itself is right on held-out captions for {shares}."]


def acceptance(metric: Metric, margin: float, methods: int, fastest: Row | None) -> str:
    """Which of `methods` methods is the fastest that keeps all but `margin` of the reference's score."""
    title = metric.label.removesuffix(" %")
    keeps = f"keeps {100 * (1 - margin):g} % of the reference's {title} with 95 % confidence"
    if fastest is None or fastest.costs.speedup is None:
        return f"No method {keeps}; more prompts would narrow the intervals."
    speed = f"{fastest.costs.speedup.mean:.2f}×"
    chosen = f"chosen from {methods} rows, uncorrected"
    return f"Fastest that {keeps} ({chosen}): {fastest.name} ({fastest.passes}, {speed})."


def latents(prompts: Iterable[int]) -> str:
    counts = ", ".join(sorted({str(count) for count in prompts}))
    return f"Mean over {counts} prompts, against the reference's latents after the same step."


def beside_paper(source: str, model: str, agreement: str, uncited: Sequence[str]) -> list[str]:
    """What to know of printed numbers beside ours.

    Args:
        source: the folder below results/paper that the printed numbers come from.
        agreement: Kendall's tau by column; empty where it says nothing.
        uncited: runs that the paper does not have.
    """
    notes = [
        f"Paper: printed numbers, cited (results/paper/{source}). Ours: {model}, run here; table.md has its intervals "
        "and conditions. A dash: not printed, or not measured here."
    ]
    if agreement:
        notes.append(
            f"Do both put the rows in the same order? Kendall's tau, 1 if they do, 0 if by chance: {agreement}."
        )
    return [*notes, *([f"Rows that the paper does not have: {', '.join(uncited)}."] if uncited else [])]


def distinct(values: Iterable[str]) -> str:
    """Each value once, in the order of appearance."""
    return ", ".join(dict.fromkeys(values))
