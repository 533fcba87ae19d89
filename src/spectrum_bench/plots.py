"""Quality against speed: one point a method, labelled where it lies."""

import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend must be chosen first

from .tables import Row  # noqa: E402

INK, FAINT = "#1b1f24", "#8a9199"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
MARKERS = "osD^vPX*"
OFFSETS = [
    (9, 0, "left"),
    (9, 10, "left"),
    (9, -10, "left"),
    (-9, 0, "right"),
    (-9, 10, "right"),
    (-9, -10, "right"),
]
OFFSETS += [
    (0, 13, "center"),
    (0, -13, "center"),
    (9, 22, "left"),
    (9, -22, "left"),
    (-9, 22, "right"),
    (-9, -22, "right"),
]
OFFSETS += [(12, s * y, "left") for y in (34, 46, 58, 70) for s in (1, -1)]  # points, from the marker


def short_names(rows: list[Row]) -> list[str]:
    """The shortest way to name the rows that tells them all apart."""
    ways = (("algo",), ("algo", "passes"), ("algo", "forecaster"), ("algo", "schedule"), ("experiment",))
    for keys in ways:
        found = [" ".join(row.passes if k == "passes" else str(row.figures[k]) for k in keys) for row in rows]
        if len(set(found)) == len(found):
            break
    return found


def quality_speed(rows: list[Row], quality: str = "psnr") -> dict[str, bytes]:
    """{"png", "svg"}: mean PSNR over the measured speedup (over passes where devices differ), 95 % intervals."""
    methods = [row for row in rows if row.role == "method" and row.figures[quality] is not None]
    measured = all(row.figures["speedup"] is not None for row in methods)
    with plt.rc_context(
        {"svg.hashsalt": "spectrum-bench", "font.size": 10, "axes.edgecolor": FAINT, "text.color": INK}
    ):
        figure, axes = plt.subplots(figsize=(7.4, 4.6), layout="constrained")
        points = []
        for i, row in enumerate(methods):
            f = row.figures
            x, y = f["speedup"] if measured else f["passes"], f[quality]
            low, high = f[f"{quality}_low"], f[f"{quality}_high"]
            colour = COLOURS[i % len(COLOURS)]
            if low is not None:
                axes.errorbar(x, y, [[y - low], [high - y]], color=colour, lw=1.2, capsize=3, zorder=2)
            axes.plot(x, y, MARKERS[i % len(MARKERS)], color=colour, ms=7, mec="white", mew=0.7, zorder=3)
            points.append((x, y, colour))
        floor = next((r.figures[quality] for r in rows if r.role == "noise floor"), None)
        if floor is not None and floor < 60:
            axes.axhline(floor, color=FAINT, ls="--", lw=1)
            axes.annotate("noise floor", (1, floor), (0, 3), "axes fraction", color=FAINT)
        axes.set_xlabel("speedup over the reference, measured (×)" if measured else "network passes")
        axes.set_ylabel("PSNR to the reference (dB), 95 % interval")
        if not measured:
            axes.invert_xaxis()
        axes.margins(x=0.16, y=0.14)
        axes.grid(color=FAINT, alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=FAINT, labelcolor=INK)
        names = [
            f"{name}  {row.passes}" if row.passes not in name else name
            for name, row in zip(short_names(methods), methods, strict=True)
        ]
        _label(figure, axes, points, names)
        out = {kind: io.BytesIO() for kind in ("png", "svg")}
        figure.savefig(out["png"], format="png", dpi=160)
        figure.savefig(out["svg"], format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return {kind: stream.getvalue() for kind, stream in out.items()}


def _label(figure, axes, points, names) -> None:
    """Write each name beside its point, at the first place where it covers no point and no other name."""
    figure.canvas.draw()
    boxes = [_box(*axes.transData.transform((x, y)), 14) for x, y, _ in points]
    frame = axes.get_window_extent()
    for (x, y, colour), name in sorted(zip(points, names, strict=True), key=lambda p: -p[0][1]):
        for dx, dy, side in OFFSETS:
            leader = dict(arrowstyle="-", color=colour, lw=0.6) if abs(dy) > 20 else None
            text = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=side, va="center", color=colour, fontsize=9,
                parse_math=False, arrowprops=leader, zorder=4,
            )  # fmt: skip
            box = (
                text.get_window_extent(figure.canvas.get_renderer())
                if leader is None
                else _text_box(text, figure)
            )
            if (
                not any(box.overlaps(other) for other in boxes)
                and frame.x0 <= box.x0
                and box.x1 <= frame.x1 + 4
            ):
                break
            if (dx, dy, side) != OFFSETS[-1]:
                text.remove()
        boxes.append(box)


def _text_box(text, figure):
    return matplotlib.text.Text.get_window_extent(text, figure.canvas.get_renderer())


def _box(x: float, y: float, side: float):
    return matplotlib.transforms.Bbox.from_bounds(x - side / 2, y - side / 2, side, side)
