"""What prompts can tell: how sure the order of methods is, which differences are real or too small to matter, and how
many prompts would decide the rest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import nct, t, ttest_1samp

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import formats
from spectrum_bench.reporting.comparisons import ALPHA
from spectrum_bench.reporting.rows import Row, Table
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import Values, by_prompt, estimate, holm, sign_flip

POWER = 0.8  # with which a true difference is to be found
MOST = 100_000  # prompts
DRAWS = 2000
PAIRS = ["metric", "better", "worse", "difference", "low", "high", "prompts", "matters", "p_holm", "p_equal", "needed"]
ABOUT = (
    "Pairs are neighbours in the order of means. *Differ*: a difference of zero is refused (signs flipped by prompt, "
    f"Holm's correction, p < {ALPHA}). *Equal*: a difference as large as the one that matters is refused in both "
    f"directions (two one-sided t-tests, Schuirmann 1987, p < {ALPHA}). Both hold of a difference that is real and "
    "small. *Needed*: prompts with which a paired t-test finds the difference that matters in "
    f"{POWER:.0%} of cases, if prompts scatter as here."
)
RANKS = (
    f"Ranks in {DRAWS:,} draws of the prompts, and of the seeds of each, with replacement: where 95 % of the draws put "
    "a method, and how often it is first."
)
WINS = "The share of samples on which the row's method has a better score than the column's; a tie counts half."


@dataclass(frozen=True)
class Pair:
    """Two neighbours in the order of means, in one metric. `difference` says by how much the first one is better."""

    metric: str
    better: Row
    worse: Row
    difference: float
    low: float | None
    high: float | None
    prompts: int
    matters: float
    p: float  # corrected for the number of pairs
    p_equal: float
    needed: int | None  # None: more than MOST, or one prompt alone

    @property
    def verdict(self) -> str:
        differ, equal = self.p < ALPHA, self.p_equal < ALPHA
        if not differ and not equal:
            return "cannot tell" if self.needed is None else f"cannot tell: {self.needed:,} prompts would"
        return " and ".join(["differ"] * differ + [f"equal within {self.matters:g}"] * equal)


def files(table: Table, matters: Mapping[str, float]) -> dict[str, bytes]:
    """statistics.md and statistics.csv: name -> content.

    Args:
        matters: metric -> the smallest difference that matters.

    Raises:
        UserError: a row was not scored by one of the metrics.
    """
    if absent := [metric for metric in matters if metric not in table.metrics]:
        raise UserError(f"matters={absent[0]}: not every row was scored by it; there is {', '.join(table.metrics)}")
    if sets := [metric for metric in matters if METRICS[metric].kind == "set"]:
        raise UserError(f"matters={sets[0]}: it scores a set and no prompt: name a metric that has a score a sample")
    studied = [metric for metric in table.metrics if metric in matters]
    found = [pair for metric in studied for pair in pairs(table, metric, matters[metric])]
    text = "\n\n".join(part for metric in studied for part in sections(table, metric, found))
    return {"statistics.md": f"{text}\n".encode(), "statistics.csv": formats.csv(frame(found)).encode()}


def sections(table: Table, metric: str, found: Sequence[Pair]) -> Iterator[str]:
    """The Markdown of one metric."""
    rows, own = ordered(table, metric), [pair for pair in found if pair.metric == metric]
    if len(rows) < 2:
        return
    yield f"## {METRICS[metric].label}"
    yield f"{formats.pipe_table(rank_table(rows, metric))}\n\n{RANKS}"
    lines = [
        (
            title(pair.better),
            title(pair.worse),
            f"{pair.difference:.3g}{'' if pair.low is None else f' [{pair.low:.3g}, {pair.high:.3g}]'}",
            str(pair.prompts),
            "-" if pair.needed is None else f"{pair.needed:,}",
            pair.verdict,
        )
        for pair in own
    ]
    titles = ["Better", "Worse", "Difference", "Prompts", f"Needed for {own[0].matters:g}", "What the prompts tell"]
    yield f"{formats.pipe_table(pd.DataFrame(lines, columns=titles), text_columns=2)}\n\n{ABOUT}"
    yield f"{formats.pipe_table(win_table(rows, metric))}\n\n{WINS}"


def title(row: Row) -> str:
    """The name and the passes, which together are unique."""
    return formats.md(f"{row.name} ({row.passes})")


def frame(found: Sequence[Pair]) -> pd.DataFrame:
    """One line for each pair."""
    lines = [
        (p.metric, p.better.experiment.name, p.worse.experiment.name, p.difference, p.low, p.high, p.prompts, p.matters,
         p.p, p.p_equal, p.needed) for p in found
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=PAIRS, dtype=object)


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def ordered(table: Table, metric: str) -> list[Row]:
    """The methods with a score, the best one first."""
    rows = [row for row in table.methods if metric in row.results]
    sign = -1 if METRICS[metric].higher_is_better else 1
    return sorted(rows, key=lambda row: sign * row.results[metric].estimate.mean)


def pairs(table: Table, metric: str, matters: float) -> list[Pair]:
    """Neighbours in the order of means, on the prompts that both were scored on."""
    rows = ordered(table, metric)
    sign = 1 if METRICS[metric].higher_is_better else -1
    neighbours = list(zip(rows, rows[1:], strict=False))
    samples = [sign * np.subtract(a.scores[metric], b.scores[metric]) for a, b in neighbours]
    means = [by_prompt(each, a.subjects) for each, (a, _) in zip(samples, neighbours, strict=True)]
    found = []
    corrected = holm([sign_flip(each) for each in means])
    for (a, b), each, values, p in zip(neighbours, samples, means, corrected, strict=True):
        mean = estimate(each, a.subjects)
        if mean is not None:
            told = (mean.mean, mean.low, mean.high, mean.n, matters, p)
            found.append(Pair(metric, a, b, *told, equivalence(values, matters), prompts_needed(values, matters)))
    return found


def equivalence(differences: Values, matters: float) -> float:
    """The p-value of two one-sided t-tests (Schuirmann 1987) of a mean difference of at least `matters`, in either
    direction. 1 with fewer than two prompts.

    Args:
        differences: one a prompt.
    """
    if len(differences) < 2:
        return 1.0
    if not np.ptp(differences):  # the same difference on every prompt
        return 0.0 if abs(differences[0]) < matters else 1.0
    above = ttest_1samp(differences, -matters, alternative="greater").pvalue
    below = ttest_1samp(differences, matters, alternative="less").pvalue
    return float(max(above, below))


def prompts_needed(differences: Values, matters: float) -> int | None:
    """How many prompts a two-sided paired t-test needs to find a mean difference of `matters` with power POWER, if
    differences scatter as these do. None if that is more than MOST, or unknown with fewer than two prompts.

    Args:
        differences: one a prompt.
    """
    if len(differences) < 2:
        return None
    effect = min(matters / max(float(np.std(differences, ddof=1)), 1e-12), 10.0)  # SciPy fails far out
    enough = 2
    while power(effect, enough) < POWER:
        if enough > MOST:
            return None
        enough *= 2
    fewest = enough // 2  # too few
    while enough - fewest > 1:
        middle = (fewest + enough) // 2
        fewest, enough = (fewest, middle) if power(effect, middle) >= POWER else (middle, enough)
    return enough


def power(effect: float, n: int) -> float:
    """The power of a two-sided paired t-test at level ALPHA for a mean of `effect` standard deviations."""
    critical, shift = t.ppf(1 - ALPHA / 2, n - 1), effect * n**0.5
    return float(nct.sf(critical, n - 1, shift) + nct.cdf(-critical, n - 1, shift))


# ---------------------------------------------------------------------------------------------------------------------
# Ranks and wins


def rank_table(rows: Sequence[Row], metric: str) -> pd.DataFrame:
    ranks = resampled_ranks(rows, metric)
    low, high = np.quantile(ranks, [0.025, 0.975], axis=0, method="nearest").astype(int)
    lines = [
        (formats.md(row.name), row.passes, f"{row.results[metric].estimate.mean:.4g}", f"{a} to {b}", f"{first:.0%}")
        for row, a, b, first in zip(rows, low, high, (ranks == 1).mean(0), strict=True)
    ]
    return pd.DataFrame(lines, columns=["Method", "Passes", "Mean", "Rank", "First"])


def resampled_ranks(rows: Sequence[Row], metric: str) -> NDArray[np.int64]:
    """The rank of each row (1: best) in each draw, (DRAWS, rows): prompts are drawn with replacement, and then as many
    seeds of each as it has. Samples that a row lacks are left out."""
    scores = np.array([row.scores[metric] for row in rows])  # (rows, samples)
    whole = ~np.isnan(scores).any(0)
    groups = pd.Series(range(int(whole.sum()))).groupby(np.array(rows[0].subjects)[whole]).indices.values()
    rng, sign = np.random.default_rng(0), -1 if METRICS[metric].higher_is_better else 1
    at_once = max(1, 10**6 // max(1, int(whole.sum())))  # so that memory stays small
    means = [
        draws(list(groups), min(at_once, DRAWS - begun), rng) @ scores[:, whole].T for begun in range(0, DRAWS, at_once)
    ]
    order: NDArray[np.int64] = (sign * np.concatenate(means)).argsort(1).argsort(1) + 1
    return order


def draws(groups: Sequence[NDArray[np.int64]], count: int, rng: np.random.Generator) -> Values:
    """The weight of each sample in `count` draws, (count, samples). A group holds the samples of one prompt."""
    weights = np.zeros((count, sum(map(len, groups))))
    drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / max(len(groups), 1)), count)
    for samples, times in zip(groups, drawn.T, strict=True):
        n = len(samples)
        weights[:, samples] = rng.multinomial(times * n, np.full(n, 1 / n)) / n if n > 1 else times[:, None]
    return weights


def win_table(rows: Sequence[Row], metric: str) -> pd.DataFrame:
    scores = np.array([row.scores[metric] for row in rows]) * (1 if METRICS[metric].higher_is_better else -1)
    body = [[title(row), *(wins(a, b) for b in scores)] for row, a in zip(rows, scores, strict=True)]
    return pd.DataFrame(body, columns=["Better than", *map(title, rows)])


def wins(a: Values, b: Values) -> str:
    """How often a is above b, of the samples that both have."""
    better = (np.sign(a - b)[~np.isnan(a - b)] + 1) / 2
    return f"{better.mean():.0%}" if len(better) and not np.array_equal(a, b) else "-"
