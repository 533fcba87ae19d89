"""Quality against speed: one point a method, named where it lies."""

import io

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

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
STYLE = {
    "svg.hashsalt": "spectrum_bench",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.labelcolor": INK,
}
STYLE |= {"ytick.labelcolor": INK, "xtick.color": FAINT, "ytick.color": FAINT}
# Where a name may stand, in points from its marker: beside it, above, below, then further off on a line.
PLACES = [(9, 0, "left"), (-9, 0, "right"), (0, 13, "center"), (0, -13, "center")]
PLACES += [
    (side * 14, up * far, ha)
    for far in (14, 27, 40, 53, 66)
    for up in (1, -1)
    for side, ha in ((1, "left"), (-1, "right"))
]


def quality_speed(rows: list[Row]) -> dict[str, bytes]:
    """{"png", "svg"}: mean PSNR with its interval over the measured speedup, or over passes if that is unknown."""
    methods = [row for row in rows if row.role == "method" and row.figures["psnr"] is not None]
    measured = all(row.figures["speedup"] is not None for row in methods)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 4.6), layout="constrained")
        FigureCanvasAgg(figure)  # without pyplot, nothing global and no display
        axes = figure.subplots()
        points = [_point(axes, row, measured, i) for i, row in enumerate(methods)]
        floor = next((row.figures["psnr"] for row in rows if row.role == "noise floor"), None)
        if floor is not None and floor < 60:  # bit-identical re-runs (100 dB) would squeeze the rest
            axes.axhline(floor, color=FAINT, ls="--", lw=1)
            axes.annotate("noise floor", (0, floor), (4, 3), ("axes fraction", "data"), "offset points", color=FAINT)
        axes.set_xlabel("speedup over the reference, measured (×)" if measured else "network passes")
        axes.set_ylabel("PSNR to the reference (dB), 95 % interval")
        if not measured:
            axes.invert_xaxis()
        axes.margins(x=0.7, y=0.2)  # room for the names
        axes.grid(color=FAINT, alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        names = [f"{row.name}  {row.passes}" for row in methods]
        _name(figure, axes, points, names)
        out = {kind: io.BytesIO() for kind in ("png", "svg")}
        figure.savefig(out["png"], format="png", dpi=160)
        figure.savefig(out["svg"], format="svg", transparent=True, metadata={"Date": None})
    return {kind: stream.getvalue() for kind, stream in out.items()}


def _point(axes, row: Row, measured: bool, i: int) -> tuple[float, float, float, float, str]:
    """Draw one method; (x, y, lower end, upper end, colour)."""
    f, colour = row.figures, COLOURS[i % len(COLOURS)]
    x, y = f["speedup"] if measured else f["passes"], f["psnr"]
    low, high = (y, y) if f["psnr_low"] is None else (f["psnr_low"], f["psnr_high"])
    axes.errorbar(x, y, [[y - low], [high - y]], color=colour, lw=1.2, capsize=3, zorder=2)
    axes.plot(x, y, MARKERS[i % len(MARKERS)], color=colour, ms=7, mec="white", mew=0.7, zorder=3)
    return x, y, low, high, colour


def _name(figure, axes, points, names) -> None:
    """Write each name at the first of PLACES where it covers no point, no interval and no other name."""
    figure.draw_without_rendering()  # settles the layout, and with it where data lie
    frame, taken = axes.get_window_extent(), []
    for x, _, low, high, _ in points:
        ends = axes.transData.transform([(x, low), (x, high)])
        taken.append(Bbox([ends[0] - 7, ends[1] + 7]))
    for (x, y, _, _, colour), name in sorted(zip(points, names, strict=True), key=lambda point: -point[0][1]):
        for dx, dy, side in PLACES:
            line = {"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkB": 3} if dx and dy else None
            text = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=side, va="center", color=INK, fontsize=8,
                parse_math=False, arrowprops=line, zorder=4,
            )  # fmt: skip
            text.update_positions(figure.canvas.get_renderer())
            box = Text.get_window_extent(text)  # of the words alone, without the line
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            axes.add_artist(text)  # nowhere is free: the last place
        taken.append(box)
