"""Quality against speed: one point a method, best first in the legend."""

import io
from contextlib import contextmanager

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .tables import Row

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
STYLE = {
    "svg.hashsalt": "spectrum_bench",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.labelcolor": INK,
}
STYLE |= {"ytick.labelcolor": INK, "xtick.color": FAINT, "ytick.color": FAINT}


def quality_speed(rows: list[Row]) -> dict[str, bytes]:
    """{"png", "svg"}: mean PSNR with its interval over the measured speedup; a ranking if that is unknown."""
    methods = [row for row in rows if row.role == "method" and row.figures.get("psnr") is not None]
    methods.sort(key=lambda row: -row.figures["psnr"])
    if not all(row.figures["speedup"] is not None for row in methods):
        return ranking(methods)
    with drawing() as (figure, axes):
        for i, row in enumerate(methods):
            _point(axes, row, row.figures["speedup"], i)
        floor = next((row.figures.get("psnr") for row in rows if row.role == "noise floor"), None)
        if floor is not None and floor < 60:  # bit-identical re-runs (100 dB) would squeeze the rest
            axes.axhline(floor, color=FAINT, ls="--", lw=1)
            axes.annotate("noise floor", (0, floor), (4, 3), ("axes fraction", "data"), "offset points", color=FAINT)
        axes.set_xlabel("speedup over the reference, measured (×)")
        axes.set_ylabel("PSNR to the reference (dB), 95 % interval")
        axes.margins(0.08)
        return finish(figure, axes)


def ranking(methods: list[Row]) -> dict[str, bytes]:
    """{"png", "svg"}: mean PSNR with its interval, a line a method, best first; its passes beside its name."""
    with drawing(height=1.2 + 0.24 * len(methods)) as (figure, axes):
        for i, row in enumerate(methods):
            y, f = len(methods) - i, row.figures
            axes.plot(_interval(row), [y, y], color=COLOURS[0], lw=1.4, solid_capstyle="butt")
            axes.plot(f["psnr"], y, "o", color=COLOURS[0], ms=5, mec="white", mew=0.7)
        names = [f"{_name(row)} passes" for row in methods]
        axes.set_yticks(range(len(methods), 0, -1), names, fontsize=8)
        axes.set_xlabel("PSNR to the reference (dB), 95 % interval")
        return finish(figure, axes)


def latent_errors(rows: list[Row]) -> dict[str, bytes]:
    """{"png", "svg"}: RMSE of each method's latents by step, on a logarithmic axis."""
    rows = [row for row in rows if row.latents and any(row.latents)]
    with drawing() as (figure, axes):
        for i, row in enumerate(sorted(rows, key=lambda row: row.latents[-1])):
            values = [value or float("nan") for value in row.latents]  # computed steps at the beginning: exactly 0
            style = {"color": COLOURS[i % len(COLOURS)], "ls": LINES[i // len(COLOURS) % len(LINES)]}
            axes.plot(range(1, len(values) + 1), values, lw=1.4, label=_name(row), **style)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("RMSE of the latents to the reference's")
        return finish(figure, axes)


@contextmanager
def drawing(height: float = 4.6):
    """(figure, axes) in our style, without pyplot: nothing global and no display. `height` in inches."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots()


def finish(figure: Figure, axes) -> dict[str, bytes]:
    """{"png", "svg"} of a drawing whose lines and points have labels."""
    axes.grid(color=FAINT, alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    out = {kind: io.BytesIO() for kind in ("png", "svg")}
    figure.savefig(out["png"], format="png", dpi=160)
    figure.savefig(out["svg"], format="svg", transparent=True, metadata={"Date": None})
    return {kind: stream.getvalue() for kind, stream in out.items()}


def _point(axes, row: Row, x: float, i: int) -> None:
    y, colour = row.figures["psnr"], COLOURS[i % len(COLOURS)]
    low, high = _interval(row)
    axes.errorbar(x, y, [[y - low], [high - y]], color=colour, lw=1.2, capsize=3, zorder=2)
    axes.plot(x, y, MARKERS[i % len(MARKERS)], color=colour, ms=8, mec="white", mew=0.7, label=_name(row), zorder=3)


def _interval(row: Row) -> tuple[float, float]:
    """Of its PSNR; empty where none is known."""
    low, middle, high = (row.figures[name] for name in ("psnr_low", "psnr", "psnr_high"))
    return middle if low is None else low, middle if high is None else high


def _name(row: Row) -> str:
    """For a legend: no mathematics, and nothing that matplotlib would hide."""
    return f"{row.name}  {row.passes}".replace("$", r"\$").lstrip("_")


def sweep(lines: dict[str, list[Row]], key: str) -> dict[str, bytes]:
    """{"png", "svg"}: PSNR over passes, a line for each value of a swept key."""
    with drawing() as (figure, axes):
        for i, (value, rows) in enumerate(lines.items()):
            rows = sorted((r for r in rows if r.figures["psnr"] is not None), key=lambda r: r.figures["passes"])
            x, y = ([row.figures[name] for row in rows] for name in ("passes", "psnr"))
            ends = [_interval(row) for row in rows]
            spans = [[p - low for p, (low, _) in zip(y, ends, strict=True)]]
            spans += [[high - p for p, (_, high) in zip(y, ends, strict=True)]]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "ms": 5}
            axes.errorbar(x, y, spans, lw=1.4, capsize=2, elinewidth=0.8, label=f"{key} = {value}", **style)
        axes.set_xlabel("network passes")
        axes.set_ylabel("PSNR to the reference (dB), 95 % interval")
        return finish(figure, axes)
