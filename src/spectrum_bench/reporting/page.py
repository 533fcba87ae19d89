"""The report: the table in all formats, the plots, and a page that needs only a browser."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import cells, comparisons, formats, notes, tables
from spectrum_bench.reporting.beside import Beside, Shown
from spectrum_bench.reporting.folder import replace_folder
from spectrum_bench.reporting.notes import distinct
from spectrum_bench.reporting.pictures import Gallery, Picture, exact, thumbnail
from spectrum_bench.reporting.plots import INK, drawn, quality_speed
from spectrum_bench.reporting.rows import Row, Table
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.metrics import METRICS

__all__ = ["page", "thumbnail", "write_report"]


def write_report(
    experiments: list[Experiment],
    reference: Experiment,
    out: Path,
    rows: int = 16,
    align: str = "passes",
    baseline: str | None = None,
    margin: float = 0.01,
    beside: Callable[[Table], Mapping[str, bytes]] | None = None,
) -> Table:
    """Write the files of all formats and the page, index.html, into `out`: table.md, .csv and .tex, prompts.csv,
    plot.png and .svg, and with a baseline differences.md and .csv.

    Args:
        rows: the most prompts whose pictures the page shows.
        align: the budget at which methods are compared: passes, latency or memory.
        baseline: the row from which the others' differences are computed.
        margin: the share of the reference's own score that an accepted method may lose.
        beside: gives further files of the report, which come and go with it.

    Raises:
        UserError: the experiments make no table, no row has the baseline's name, or `out` cannot be written.
    """
    table = tables.build(experiments, reference, align)
    accepted = comparisons.accept(table, margin)
    table.notes[1:1] = [notes.acceptance(a.metric, margin, a.candidates, a.fastest) for a in accepted]
    table.comparison = comparisons.compare(table, baseline) if baseline else None
    files = formats.render(table)
    files["index.html"] = page(table, files, rows).encode()
    files |= beside(table) if beside else {}
    try:
        replace_folder(out, files)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): choose another out=<folder>") from None
    return table


@dataclass(frozen=True)
class Samples:
    """The pictures of a page: a grid of prompts and rows, and for each method the samples furthest from the
    reference."""

    # prompt, target caption, pictures beside it, and one picture for each row
    grid: list[tuple[str, str | None, list[Shown], list[Picture]]]
    worst: list[tuple[Row, list[tuple[str, Picture, Picture]]]]  # prompt, the reference's, the method's
    shape: tuple[int, ...]  # height and width of a sample
    exact: bool  # whether all pictures are the samples' own pixels


def samples(table: Table, rows: int) -> Samples:
    """The pictures of the first `rows` prompts, and the worst of each method."""
    records, furthest = table.reference.records, worst(table)
    prompts = list(dict.fromkeys(record.prompt_index for record in records))[:rows]
    seeds = len({record.seed for record in records}) > 1
    gridded = [record for record in records if record.prompt_index in prompts]  # the first ones
    count = len(gridded) * len(table.rows) + sum(2 * len(places) for places in furthest.values())
    count += sum(len(record.inputs) for record in gridded)
    gallery, beside = Gallery(table.rows, count), Beside(table.reference.experiment, count)
    grid = [
        (
            f"{r.prompt} · seed {r.seed}" if seeds else r.prompt,
            r.target_caption,
            beside.of(r),
            [gallery.picture(k, i) for k in range(len(table.rows))],
        )
        for i, r in enumerate(gridded)
    ]
    below = [
        (table.rows[k], [(records[i].prompt, gallery.picture(0, i), gallery.picture(k, i)) for i in places])
        for k, places in furthest.items()
    ]
    frames = table.reference.experiment.picture(records[0])
    return Samples(grid, below, frames.shape[-3:-1], exact(frames, count))


def page(table: Table, drawings: dict[str, bytes], rows: int) -> str:
    """The report as one HTML file. Every string goes through autoescape; only our own drawings do not.

    Args:
        drawings: the report's files. The page uses latents.svg if there is one.
        rows: the most prompts whose pictures the page shows.
    """
    records, comparison = table.reference.records, table.comparison
    plots = [
        inline(quality_speed(table.rows, [name])["svg"].decode(), f"{METRICS[name].label} against speed")
        for name in drawn(table)
    ]
    shown = samples(table, rows)
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html.j2").render(
        model=records[0].model,
        head=cells.head(table),
        body=list(zip(table.rows, cells.body(table), strict=True)),
        marks=cells.marks(table),
        front=notes.FRONT,
        notes=table.notes,
        plots=plots,
        by_step=inline(drawings["latents.svg"].decode(), "Error by step") if "latents.svg" in drawings else None,
        compared=cells.differences(table, comparison) if comparison else None,
        baseline=comparison.baseline if comparison else None,
        about_differences=notes.DIFFERENCES,
        metrics=[METRICS[name] for name in table.metrics],
        worst=shown.worst,
        provenance=[provenance(row) for row in table.rows],
        rows=table.rows,
        grid=shown.grid,
        exact=shown.exact,
        shape=shown.shape,
        total=len(records),
    )


def provenance(row: Row) -> dict[str, str]:
    """The origin of a row: computed steps, device, versions, code and configuration."""
    steps = Counter(tuple(r.computed_steps) for r in row.records)
    computed, _ = steps.most_common(1)[0]
    bar = "".join("#" if step in computed else "." for step in range(row.experiment.steps))
    others = f"; {len(steps) - 1} other choices of steps among {len(row.records)} samples" if len(steps) > 1 else ""
    versions = row.records[0].versions
    return {
        "computed steps": f"{bar} ({' '.join(map(str, computed))}){others}",
        "schedule": row.schedule,
        "forecaster": row.forecaster,
        "site": row.site,
        "device": distinct(record.device for record in row.records),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "code": distinct(record.git_sha for record in row.records),
        "configuration": yaml.safe_dump(row.experiment.config, allow_unicode=True, sort_keys=False),
    }


def worst(table: Table, count: int = 3) -> dict[int, list[int]]:
    """For each method, by its place in the table, the samples with the lowest PSNR."""
    samples = {}
    for k, row in enumerate(table.rows):
        if row.role == "method" and "psnr" in row.results:
            scores = row.scores["psnr"]
            scored = [i for i, score in enumerate(scores) if not math.isnan(score)]
            samples[k] = sorted(scored, key=scores.__getitem__)[:count]
    return samples


def inline(svg: str, label: str) -> Markup:
    """A drawing as an element of the page. Its ink gets the page's text colour, for light and dark pages."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(
        r'<svg[^>]*viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{label}">',
        svg,
        count=1,
    )
    return Markup(svg.replace(INK, "currentColor"))
