"""All that a reader gets: the table in three formats, the plot, and a page that needs nothing but a browser."""

import base64
import io
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import comparisons, formats, tables
from spectrum_bench.reporting.plots import INK, latent_errors, quality_speed
from spectrum_bench.sampling.records import Record, write_atomically
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.metrics import METRICS

THUMBNAIL = 256  # px; larger samples are shown smaller, and coded with loss
EXACT, LOSSY = 2**24, 2**26  # most pixels in all of a page's pictures, with and without loss: about 50 MB either way


def write_report(
    experiments: list[Experiment],
    reference: Experiment,
    out: Path,
    rows: int = 16,
    align: str = "passes",
    baseline: str | None = None,
    margin: float = 0.01,
) -> tables.Table:
    """Write tables, plot and page into `out`: table.md, .csv and .tex, prompts.csv, plot.png and .svg, index.html, and
    with a baseline differences.md and .csv.

    Args:
        rows: most prompts that the page shows pictures of.
        align: passes, latency or memory: at how much of it methods are compared.
        baseline: the row from which the others' differences are taken.
        margin: share of the reference's own score that a method may lose to be named as fast enough.
    """
    table = tables.build(experiments, reference, align)
    table.notes[1:1] = comparisons.gate(table, margin)
    compared = comparisons.compare(table, baseline) if baseline else None
    plot = quality_speed(table.rows, drawn(table))
    files = {
        "table.md": formats.markdown(table).encode(),
        "table.csv": formats.unrounded(table).encode(),
        "table.tex": formats.latex(table).encode(),
        "prompts.csv": comparisons.per_prompt(table).encode(),
        "plot.png": plot["png"],
        "plot.svg": plot["svg"],
    }
    if any(row.latents for row in table.rows):
        by_step = latent_errors(table.rows)
        files |= {"latents.md": formats.latents(table).encode()}
        files |= {"latents.png": by_step["png"], "latents.svg": by_step["svg"]}
    if compared:
        files["differences.md"] = formats.differences(table, *compared).encode()
        files["differences.csv"] = comparisons.unrounded(compared[1], compared[0]).encode()
    files["index.html"] = page(table, files, rows, compared).encode()
    try:
        for name, data in files.items():
            write_atomically(out / name, data)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): choose another out=<folder>") from None
    return table


def drawn(table: tables.Table) -> list[str]:
    """The metrics that some method has a value of."""
    methods = [row for row in table.rows if row.role == "method"]
    return [name for name in table.metrics if any(row.figures[name] is not None for row in methods)]


def page(table: tables.Table, drawings: dict[str, bytes], rows: int, compared: tuple | None = None) -> str:
    """The report as one HTML file. Every string goes through autoescape; only our own drawings do not."""
    records, furthest = table.rows[0].records, worst(table)
    prompts = list(dict.fromkeys(r.prompt_index for r in records))[:rows]
    seeds = len({r.seed for r in records}) > 1
    gridded = [r for r in records if r.prompt_index in prompts]  # the first ones
    count = len(gridded) * len(table.rows) + sum(2 * len(found) for found in furthest.values())
    shown = {}

    def cell(k, i):  # pixels only where a sample is first shown; elsewhere the page takes them from there
        if (k, i) in shown:
            return shown[k, i] | {"uri": None}
        shown[k, i] = picture(table.rows[k], i, count) | {"key": f"{k}-{i}"}
        return shown[k, i]

    grid = [
        (f"{r.prompt} · seed {r.seed}" if seeds else r.prompt, [cell(k, i) for k in range(len(table.rows))])
        for i, r in enumerate(gridded)
    ]
    first = table.rows[0].experiment.picture(records[0])
    plots = [
        inline(quality_speed(table.rows, [name])["svg"].decode(), f"{METRICS[name].label} against speed")
        for name in drawn(table)
    ]
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html.j2").render(
        model=records[0].model,
        head=formats.head(table),
        body=list(zip(table.rows, formats.body(table), strict=True)),
        marks=formats.marks(table),
        notes=table.notes,
        plots=plots,
        by_step=inline(drawings["latents.svg"].decode(), "Error by step") if "latents.svg" in drawings else None,
        compared=formats.difference_cells(table, compared[1]) if compared else None,
        baseline=compared[0] if compared else None,
        about_differences=formats.DIFFERENCES,
        metrics=[METRICS[name] for name in table.metrics],
        worst=[
            (table.rows[k], [(records[i].prompt, cell(0, i), cell(k, i)) for i in found])
            for k, found in furthest.items()
        ],
        provenance=[provenance(row) for row in table.rows],
        rows=table.rows,
        grid=grid,
        exact=exact(first, count),
        shape=first.shape[-3:-1],
        total=len(records),
    )


def provenance(row: tables.Row) -> dict[str, str]:
    """Where a row comes from: what was computed, on what, with which code and configuration."""
    steps = Counter(tuple(r.computed_steps) for r in row.records)
    computed, _ = steps.most_common(1)[0]
    bar = "".join("#" if step in computed else "." for step in range(row.experiment.steps))
    others = f"; {len(steps) - 1} other choices of steps among {len(row.records)} samples" if len(steps) > 1 else ""
    versions = row.records[0].versions
    return {
        "computed steps": f"{bar} ({' '.join(map(str, computed))}){others}",
        "schedule": row.figures["schedule"],
        "forecaster": row.figures["forecaster"],
        "site": row.figures["site"],
        "device": ", ".join(dict.fromkeys(r.device for r in row.records)),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "code": ", ".join(dict.fromkeys(r.git_sha for r in row.records)),
        "configuration": yaml.safe_dump(row.experiment.config, allow_unicode=True, sort_keys=False),
    }


def worst(table: tables.Table, count: int = 3) -> dict[int, list[int]]:
    """Of each method, by its place in the table, the samples that are furthest from the reference by PSNR."""
    out = {}
    for k, row in enumerate(table.rows):
        if row.role == "method" and row.figures.get("psnr") is not None:
            scores = row.scores["psnr"]
            known = [i for i, score in enumerate(scores) if not math.isnan(score)]
            out[k] = sorted(known, key=lambda i: scores[i])[:count]
    return out


def picture(row: tables.Row, i: int, count: int) -> dict:
    """The i-th sample of a row, one of `count` on the page: its pixels as a data URI and its scores in words."""
    psnr, caption = (row.scores.get(name, [math.nan] * (i + 1))[i] for name in ("psnr", "caption"))
    words = []
    if not math.isnan(psnr):
        words.append("identical" if row.scores["identical"][i] else f"{psnr:.1f} dB")
    if not math.isnan(caption):
        words.append("caption ✓" if caption else "caption ✗")
    uri, width = thumbnail(row.experiment, row.records[i], count)
    title = f"{row.name} {row.passes}"
    return {"uri": uri, "width": width, "words": " · ".join(words), "role": row.role, "title": title}


def exact(frames: np.ndarray, count: int) -> bool:
    """Whether the page shows the very pixels of `count` samples like this one."""
    height, width = frames.shape[-3:-1]
    return max(height, width) <= THUMBNAIL and count * frames.size // 3 <= EXACT


def thumbnail(experiment: Experiment, record: Record, count: int = 1) -> tuple[str, int]:
    """(data URI, width in CSS pixels). Up to 256 px the pixels are the sample's own, unless `count` such pictures are
    too heavy for a page: then, as of larger samples, a copy with loss, the smaller the more there are. Small ones are
    shown double. A clip is an animated WebP, which every browser plays as a picture."""
    frames = experiment.picture(record)
    image, *others = map(Image.fromarray, frames if frames.ndim == 4 else [frames])
    whole, stream = exact(frames, count), io.BytesIO()
    if not whole:
        weight = count * max(1, len(others) / 4)  # the frames of a clip are coded from each other
        side = min(THUMBNAIL, int(math.sqrt(LOSSY / weight)))
        for frame in (image, *others):
            frame.thumbnail((side, side), Image.Resampling.LANCZOS)
    if others:
        kind, pace = "webp", round(1000 / experiment.model["fps"])
        how = {"save_all": True, "append_images": others, "duration": pace, "loop": 0}
        image.save(stream, "WEBP", lossless=whole, quality=80, **how)
    elif whole:
        kind = "png"
        image.save(stream, "PNG", optimize=True)
    else:
        kind = "jpeg"
        image.save(stream, "JPEG", quality=85)
    width = image.width * (2 if max(image.size) <= THUMBNAIL // 2 else 1)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}", width


def inline(svg: str, label: str) -> Markup:
    """Our own drawing as an element of the page, its ink in the page's colour so that it reads on light and dark."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(
        r'<svg[^>]*viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{label}">',
        svg,
        count=1,
    )
    return Markup(svg.replace(INK, "currentColor"))
