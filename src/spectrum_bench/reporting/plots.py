"""Drawings: quality against speed with one point for each method, the error by step, and sweeps."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spectrum_bench.reporting.rows import Row, Table
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.scoring.stats import Estimate

INK, FAINT = "#1b1f24", "#8a9199"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    INK,
)  # Okabe and Ito, for all eyes
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
LABEL = 60  # characters of a name in a drawing
Style = dict[str, Any]  # keywords that matplotlib takes
STYLE: dict[Any, str] = {
    "svg.hashsalt": "spectrum_bench",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}


def files(table: Table) -> dict[str, str | bytes]:
    """plot.png and .svg; latents.png and .svg where latents were kept."""
    drawings = {"plot": quality_speed(table.rows, drawn(table))}
    if any(row.latents for row in table.rows):
        drawings["latents"] = latent_errors(table.rows)
    return {f"{name}.{kind}": data for name, drawing in drawings.items() for kind, data in drawing.items()}


def drawn(table: Table) -> list[str]:
    """The metrics in which some method has a result."""
    return [name for name in table.metrics if any(name in row.results for row in table.methods)]


def quality_speed(rows: list[Row], metrics: list[str]) -> dict[str, bytes]:
    """{"png", "svg"}: one panel for each metric shows each method's mean and interval over its measured speedup. If a
    speedup is unknown, it is a ranking. A grey line joins the methods that no other method beats in both."""
    metrics = metrics or ["psnr"]
    methods = [row for row in rows if row.role == "method" and row.results]
    methods.sort(key=lambda row: [_rank(row, name) for name in METRICS])  # same colours everywhere
    if not all(row.costs.speedup for row in methods):
        return ranking(methods, metrics)
    columns = min(len(metrics), 2)
    with drawing(4.2 * -(-len(metrics) // columns), columns, len(metrics)) as (figure, panels):
        for axes, name in zip(panels, metrics, strict=True):
            scored = [(i, row) for i, row in enumerate(methods) if name in row.results]
            for i, row in scored:
                _point(axes, row, name, i)
            front = frontier([row for _, row in scored], name)
            x, y = [_speedup(row) for row in front], [_interval(row, name)[1] for row in front]
            axes.step(x, y, where="pre", color=FAINT, lw=1, zorder=1)
            _level(axes, rows, name)
            axes.set_xlabel("speedup over the reference, measured (×)")
            axes.set_ylabel(f"{METRICS[name].title}, 95 % interval")
            axes.margins(0.08)
        return finish(figure, *panels)


def frontier(rows: list[Row], name: str) -> list[Row]:
    """The rows that no other row beats in both speedup and metric, slowest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (-_speedup(row), _rank(row, name))):
        if not front or METRICS[name].worse(front[0].results[name].estimate.mean, row.results[name].estimate.mean):
            front.insert(0, row)
    return front


def ranking(methods: list[Row], metrics: list[str]) -> dict[str, bytes]:
    """{"png", "svg"}: one panel for each metric shows means and intervals, one line for each method with its passes.
    The best method in the first metric is on top."""
    methods = sorted(methods, key=lambda row: _rank(row, metrics[0]))
    with drawing(1.2 + 0.24 * len(methods), len(metrics), len(metrics), sharey=True) as (figure, panels):
        for axes, name in zip(panels, metrics, strict=True):
            for i, row in enumerate(methods):
                if name in row.results:
                    low, middle, high = _interval(row, name)
                    y = len(methods) - i
                    axes.plot([low, high], [y, y], color=COLOURS[0], lw=1.4, solid_capstyle="butt")
                    axes.plot(middle, y, "o", color=COLOURS[0], ms=5, mec="white", mew=0.7)
            axes.set_xlabel(f"{METRICS[name].title}, 95 % interval")
        figure.set_figwidth(2.6 + 2.6 * len(metrics))
        names = [_name(row) + (" passes" if row.costs.passes else "") for row in methods]
        panels[0].set_yticks(range(len(methods), 0, -1), names, fontsize=8)
        return finish(figure, *panels)


def latent_errors(rows: list[Row]) -> dict[str, bytes]:
    """{"png", "svg"}: RMSE of each method's latents by step, on a logarithmic axis."""
    pairs = [(row, row.latents) for row in rows if row.latents and any(row.latents)]
    with drawing() as (figure, (axes,)):
        for i, (row, errors) in enumerate(sorted(pairs, key=lambda pair: pair[1][-1])):
            values = [error or float("nan") for error in errors]  # exactly 0 while all steps are computed
            style: Style = {"color": COLOURS[i % len(COLOURS)], "ls": LINES[i // len(COLOURS) % len(LINES)]}
            axes.plot(range(1, len(values) + 1), values, lw=1.4, label=_name(row), **style)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("RMSE of the latents to the reference's")
        return finish(figure, axes)


def errors_by_step(lines: Mapping[str, Any]) -> dict[str, bytes]:
    """{"png", "svg"}: errors in dB by step, a line for each name; the one with the smallest last error first."""
    with drawing() as (figure, (axes,)):
        for i, (name, values) in enumerate(sorted(lines.items(), key=lambda pair: float(pair[1][-1]))):
            shown = [value if value > -120 else math.nan for value in values]  # exact while all steps are computed
            style: Style = {"color": COLOURS[i % len(COLOURS)], "ls": LINES[i // len(COLOURS) % len(LINES)]}
            axes.plot(range(1, len(shown) + 1), shown, lw=1.4, label=name.replace("$", r"\$").lstrip("_"), **style)
        axes.set_xlabel("step")
        axes.set_ylabel("replayed error of the latent (dB)")
        return finish(figure, axes)


def _passes(row: Row) -> float:
    return row.costs.passes or math.nan


def sweep(lines: dict[str, list[Row]], key: str) -> dict[str, bytes]:
    """{"png", "svg"}: PSNR over passes, a line for each value of a swept key."""
    with drawing() as (figure, (axes,)):
        for i, (value, rows) in enumerate(lines.items()):
            rows = sorted((row for row in rows if "psnr" in row.results), key=_passes)
            x, spans = [_passes(row) for row in rows], [_interval(row, "psnr") for row in rows]
            y = [middle for _, middle, _ in spans]
            sizes = [[middle - low for low, middle, _ in spans], [high - middle for _, middle, high in spans]]
            style: Style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "ms": 5}
            axes.errorbar(x, y, sizes, lw=1.4, capsize=2, elinewidth=0.8, label=f"{key} = {value}", **style)
        axes.set_xlabel("network passes")
        axes.set_ylabel("PSNR to the reference (dB), 95 % interval")
        return finish(figure, axes)


def heat_map(
    values: Any, rows: Sequence[str], columns: Sequence[str], title: str, digits: int, higher_is_better: bool
) -> dict[str, bytes]:
    """{"png", "svg"}: a matrix (R, C) of numbers on a ground that is the darker the better."""
    with drawing(0.8 + 0.34 * len(rows)) as (figure, (axes,)):
        better = values if higher_is_better else -values
        axes.imshow(better, cmap="Blues", aspect="auto", vmin=better.min() - 0.1 * np.ptp(better))
        middle = better.min() + 0.6 * np.ptp(better)
        for i in range(len(rows)):
            for j in range(len(columns)):
                ink = "white" if better[i, j] > middle else "#1b1f24"
                axes.text(j, i, f"{values[i, j]:.{digits}f}", ha="center", va="center", fontsize=8, color=ink)
        axes.set_xticks(range(len(columns)), columns, fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.tick_params(length=0)
        written = finish(figure)
    return written


def differences(rows: Mapping[str, Estimate], factor: float, title: str) -> dict[str, bytes]:
    """{"png", "svg"}: a line for each name with its difference and interval, and a line at none."""
    with drawing(0.9 + 0.24 * len(rows)) as (figure, (axes,)):
        for y, each in zip(range(len(rows), 0, -1), rows.values(), strict=True):
            if each.low is not None and each.high is not None:
                axes.plot([factor * each.low, factor * each.high], [y, y], color=COLOURS[0], lw=1.4)
            axes.plot(factor * each.mean, y, "o", color=COLOURS[0], ms=5, mec="white", mew=0.7)
        axes.axvline(0, color=FAINT, ls="--", lw=1)
        axes.set_yticks(range(len(rows), 0, -1), list(rows), fontsize=8)
        axes.set_xlabel(title)
        return finish(figure, axes)


# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def drawing(
    height: float = 4.2, columns: int = 1, panels: int = 1, sharey: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """(figure, its panels) in our style. It needs neither pyplot, which has global state, nor a display. A panel is
    narrow enough for a phone.

    Args:
        height: in inches, without the legend.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * columns, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes: list[Axes] = list(figure.subplots(-(-panels // columns), columns, squeeze=False, sharey=sharey).flat)
        for unused in axes[panels:]:
            unused.remove()
        yield figure, axes[:panels]


def finish(figure: Figure, *panels: Axes) -> dict[str, bytes]:
    """{"png", "svg"} of a drawing with one legend. Lines and points have labels, the same in all panels."""
    labelled: dict[str, Any] = {}
    for axes in panels:
        axes.grid(color=FAINT, alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    if labelled:
        columns = 2 * round(figure.get_figwidth() / 5.2)
        figure.set_figheight(figure.get_figheight() + 0.3 + 0.19 * -(-len(labelled) // columns))
        style: Style = {"frameon": False, "fontsize": 8, "labelcolor": INK, "columnspacing": 1.2, "handletextpad": 0.5}
        figure.legend(labelled.values(), labelled, loc="outside lower left", ncols=columns, **style)
    out = {kind: io.BytesIO() for kind in ("png", "svg")}
    figure.savefig(out["png"], format="png", dpi=160)
    figure.savefig(out["svg"], format="svg", transparent=True, metadata={"Date": None})
    return {kind: stream.getvalue() for kind, stream in out.items()}


def _point(axes: Axes, row: Row, name: str, i: int) -> None:
    x, colour, (low, middle, high) = _speedup(row), COLOURS[i % len(COLOURS)], _interval(row, name)
    axes.plot([x, x], [low, high], "_-", color=colour, lw=1.2, ms=6, zorder=2)
    mark = MARKERS[i % len(MARKERS)]
    style: Style = {"ms": 12 if mark == "*" else 8, "mec": "white", "mew": 0.7, "zorder": 3}
    axes.plot(x, middle, mark, ls="", color=colour, label=_name(row), **style)


def _level(axes: Axes, rows: list[Row], name: str) -> None:
    """A line at the reference's score; in a paired metric, in which the reference has none, at its repetition's."""
    for row in rows:
        mean = row.mean(name)
        if row.role == "method" or mean is None or (name == "psnr" and mean >= 60):
            continue  # a bit-identical repetition (100 dB) would compress the scale
        y = _interval(row, name)[1]
        axes.axhline(y, color=FAINT, ls="--", lw=1)
        axes.annotate(row.role, (0, y), (4, 3), ("axes fraction", "data"), "offset points", color=FAINT, fontsize=8)
        return


def _speedup(row: Row) -> float:
    return row.costs.speedup.mean if row.costs.speedup else math.nan


def _rank(row: Row, name: str) -> float:
    """A sort key: the best row of a metric first, rows without a score last."""
    if (mean := row.mean(name)) is None:
        return math.inf
    return -mean if METRICS[name].higher_is_better else mean


def _interval(row: Row, name: str) -> tuple[float, float, float]:
    """(low, mean, high) of a metric as tables show it. Without an interval all three are the mean."""
    factor, estimate = METRICS[name].factor, row.results[name].estimate
    low, high = (estimate.mean if bound is None else bound for bound in (estimate.low, estimate.high))
    return factor * low, factor * estimate.mean, factor * high


def _name(row: Row) -> str:
    """A label for the legend: a $ would begin mathematics, and matplotlib hides labels that begin with _. A label wider
    than the drawing would leave no room for it."""
    name = " ".join(row.name.split())
    name = name if len(name) <= LABEL else f"{name[:LABEL]}…"
    passes = f"  {row.passes}" if row.costs.passes else ""
    return f"{name}{passes}".replace("$", r"\$").lstrip("_")
