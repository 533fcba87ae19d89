"""Tables and a plot of what scripts/gpu_truth.py measured: python scripts/gpu_report.py FILE.jsonl out=results/h100

Writes README.md, table.csv (methods), forecast.csv (kernels) and speed.svg into the folder. A file may hold several
runs; if a method was measured more than once, its median is given.
"""

import csv
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from spectrum_bench.commands.ending import run
from spectrum_bench.commands.words import parse
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT

# Names in the paper's tables 1 (A100) and 2 (H800), for its measured speedups beside ours.
PAPER = {"flux": "FLUX.1-dev", "sd3-5": "Stable Diffusion 3.5-Large", "wan14b": "Wan2.1-14B", "hunyuan": "HunyuanVideo"}
TITLES = {"flux": "FLUX.1-dev, 1024 x 1024", "sd3": "Stable Diffusion 3.5 Large, 1024 x 1024"}
TITLES |= {"wan": "Wan2.1 14B, 480 x 832, 81 frames", "hunyuan": "HunyuanVideo, 544 x 960, 61 frames"}
TITLES |= {"compiled": "FLUX.1-dev, blocks compiled", "fp8": "FLUX.1-dev, blocks compiled, fp8"}
TITLES |= {"sdxl": "Stable Diffusion XL, 1024 x 1024"}
METHOD = [
    "section",
    "model",
    "method",
    "runs",
    "steps",
    "passes",
    "total_s",
    "full_ms",
    "skipped_ms",
    "skipped_percent",
]
METHOD += ["host_skipped_ms", "speedup", "speedup_by_count", "paper_speedup", "peak_gb", "cache_gb"]
KERNEL = ["rows", "K", "way", "ms", "gb_s", "share_of_copy", "host_us", "relative_error", "rounding_alone", "unwritten"]


def read(path: Path) -> list[dict]:
    """The lines of a file. A line that was cut off is left out.

    Raises:
        UserError: the file is missing or empty, or another program wrote it.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: python scripts/gpu_truth.py makes it")
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    if not lines or lines[0].get("section") != "environment":
        raise UserError(f"{path} does not begin as a file of scripts/gpu_truth.py does")
    return lines


def paper_speedup(model: str, passes: int) -> float | None:
    """Spectrum's speedup in the paper's tables, on this model with this number of passes."""
    for name in ("table1", "table2"):
        with open(ROOT / f"results/paper/spectrum/{name}.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if (row["model"], row["method"], row["nfe"]) == (PAPER.get(model), "Spectrum", str(passes)):
                    return float(row["speedup"])
    return None


def methods(lines: list[dict]) -> list[dict]:
    """A row for each method of each section. The host's time is from the run that waited for the device after every
    step."""
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        if "passes" in line and not line["method"].startswith(("warm-up", "compiling")):
            groups.setdefault((line["section"], line["method"]), []).append(line)
    rows = []
    for (section, method), group in groups.items():
        if group[0]["synced"]:
            continue

        def median(key, group=group):
            known = [line[key] for line in group if line.get(key) is not None]
            return statistics.median(known) if known else None

        row = {key: median(key) for key in METHOD if key not in ("section", "model", "method", "runs")}
        row |= {"section": section, "model": group[0]["model"], "method": method, "runs": len(group)}
        waited = groups.get((section, f"{method} host"))
        row["host_skipped_ms"] = waited[-1]["host_skipped_ms"] if waited else None
        if row["skipped_ms"]:
            row["skipped_percent"] = 100 * row["skipped_ms"] / row["full_ms"]
        if method.startswith("spectrum") and row["steps"] == 50 and section in ("flux", "sd3"):
            row["paper_speedup"] = paper_speedup(row["model"], int(row["passes"]))
        rows.append(row)
    return rows


def table(rows: list[dict], heads: dict[str, str]) -> list[str]:
    """Markdown; `heads`: key -> heading."""

    def shown(value):
        if value is None:
            return "-"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    out = ["| " + " | ".join(heads.values()) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    return out + ["| " + " | ".join(shown(row.get(key)) for key in heads) + " |" for row in rows]


def readme(lines: list[dict], rows: list[dict], kernels: list[dict], source: str) -> str:
    parts = [heading(lines[0], source), ceilings(lines), forecasts(kernels)]
    for section, title in TITLES.items():
        measured = [row for row in rows if row["section"] == section]
        if measured:
            parts.append(["", f"## {title}", "", *table(measured, METHOD_HEADS)])
            parts.append(remarks([line for line in lines if line["section"] == section]))
    parts += [profile(lines), missing(lines), ["", LEGEND, "", "![speed](speed.svg)", ""]]
    return "\n".join(line for part in parts for line in part)


METHOD_HEADS = {"method": "Method", "passes": "passes", "steps": "of steps", "total_s": "s", "full_ms": "full step ms"}
METHOD_HEADS |= {"skipped_ms": "skipped ms", "skipped_percent": "% of full", "host_skipped_ms": "host ms"}
METHOD_HEADS |= {"speedup": "speedup", "speedup_by_count": "by count", "paper_speedup": "paper", "peak_gb": "peak GB"}
METHOD_HEADS |= {"cache_gb": "cache GB"}
LEGEND = (
    "host ms: what the host needs to issue a skipped step, from a run that waits after each. Speedups are against the "
    "fastest plain run of the same process. paper: Spectrum's measured speedup in the tables of arXiv:2603.01623 "
    "(results/paper), on A100 (images) and H800 (videos)."
)


def heading(first: dict, source: str) -> list[str]:
    """The device, the versions, and what the figures are of. `first`: the file's first line."""
    versions = ", ".join(f"{name} {v}" for name, v in first["versions"].items() if v)
    out = [
        f"# Measured on {first['device']}",
        "",
        f"`python scripts/gpu_truth.py`, {first['date'][:10]}, commit {first['commit']}, sources "
        f"{first['sources_sha256']}, driver {first.get('driver') or '-'}; {versions}.",
        "Random weights of the full-size architectures, random prompt embeddings, no text encoders, no VAE: times and "
        "memory are those of the real models, and nothing here says anything about quality. "
        f"All lines: {source}.",
    ]
    if first["simulated"]:
        out += ["", "**Simulated on a CPU at tiny widths: no figure here means anything.**"]
    return out


def ceilings(lines: list[dict]) -> list[str]:
    """The most that the card does: bandwidth of copies, rate of products, cost of an operation."""
    rows = [line for line in lines if line["section"] == "ceilings" and "what" in line]
    heads = {"what": "What", "gb_s": "GB/s", "tflop_s": "TFLOP/s", "host_us": "host us an op"}
    out = ["", "## What the card does", "", *table(rows, heads | {"device_us": "device us an op"})]
    return [*out, "", "Copies count what is read and what is written."]


def forecasts(kernels: list[dict]) -> list[str]:
    """The weighted sum alone, by each way to compute it."""
    heads = {"rows": "Rows", "K": "K", "way": "way", "ms": "ms", "gb_s": "useful GB/s", "share_of_copy": "of copy"}
    heads |= {"host_us": "host us", "relative_error": "error", "rounding_alone": "rounding alone"}
    return [
        "",
        "## The forecast by itself",
        "",
        *table(kernels, heads),
        "",
        "Useful bytes are 2K + 2 an element: K rows read once, the forecast written once. package: what the harness "
        "does; channels: the same with a weight for each channel; triton: one pass; compile: torch.compile of the sum. "
        "Errors are relative, against float64.",
    ]


def remarks(lines: list[dict]) -> list[str]:
    """What a model's lines say beside its table."""
    out = []
    for line in lines:
        if line.get("method") == "identity":
            out += ["", f"Never skipping, to the bit the plain pipeline's latents: {line['identical']}."]
        if line.get("method") == "shares":
            speedups = [
                f"{passes} passes {x:.3f}x (paper {paper_speedup(line['model'], int(passes)) or '-'}x)"
                for passes, x in line["speedup_from_steps"].items()
            ]
            out += ["", f"50 steps, reckoned from these two kinds of step: {', '.join(speedups)}."]
        if line.get("method") == "graphs":
            out += ["", f"Compiled in {line['compile_s']:.0f} s; {line['after_spectrum']['unique_graphs']} graphs."]
    return out


def profile(lines: list[dict]) -> list[str]:
    """Kernels, waits and copies of single steps."""
    steps = [
        line | {"waits": line["host_calls"]["cudaStreamSynchronize"], "down": line["copies"]["DtoH"]}
        for line in lines
        if line["section"] == "profiler" and "kernels" in line
    ]
    if not steps:
        return []
    heads = {"step": "Step of Spectrum on FLUX", "kernels": "kernels", "busy_ms": "busy ms", "span_ms": "span ms"}
    out = ["", "## Profile", "", *table(steps, heads | {"waits": "stream syncs", "down": "copies to the host"})]
    return [*out, "", "Each step begins with the device idle: the span holds the gaps that the host leaves."]


def missing(lines: list[dict]) -> list[str]:
    """What was not measured, and why."""
    failed = [line for line in lines if "skipped" in line or "error" in line]
    if not failed:
        return []
    reasons = [
        f"- {line['section']} {line.get('method', '')}: {line.get('error') or line['skipped']}".replace("\n", " ")
        for line in failed
    ]
    return ["", "## Not measured", "", *reasons]


def plot(rows: list[dict], kernels: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    names = list(dict.fromkeys(line["rows"] for line in kernels))
    for i, way in enumerate(("package", "compile", "triton")):
        share = {line["rows"]: line["share_of_copy"] for line in kernels if line["way"] == way and line["K"] == 10}
        left.bar([names.index(n) + 0.27 * (i - 1) for n in share], [x or 0 for x in share.values()], 0.25, label=way)
    left.axhline(0.8, color="grey", lw=0.8)
    left.set_xticks(range(len(names)), names, rotation=20)
    left.set(title="Forecast from 10 rows", ylabel="useful bytes a second / copy bandwidth")
    left.legend()
    shown = [row for row in rows if row["speedup"] and row["passes"] < row["steps"]][::-1]
    for i, row in enumerate(shown):
        right.barh(i, row["speedup_by_count"], 0.8, color="0.85", label="by count" if not i else None)
        right.barh(i, row["speedup"], 0.5, color="tab:blue", label="measured" if not i else None)
    right.set_yticks(range(len(shown)), [f"{row['section']}: {row['method']}" for row in shown], fontsize=7)
    right.set(title="Speedup", xlabel="times the plain pipeline")
    right.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_csv(path: Path, rows: list[dict], keys: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str]) -> None:
    files, options = parse(argv, __doc__, {"out": None})
    lines = [line for file in files for line in read(file)]
    folder = Path(options["out"])
    folder.mkdir(parents=True, exist_ok=True)
    rows = methods(lines)
    kernels = [line for line in lines if line.get("way") in ("package", "channels", "compile", "triton")]
    order = list(dict.fromkeys(line["rows"] for line in kernels))
    kernels.sort(key=lambda line: (order.index(line["rows"]), line["K"]))
    write_csv(folder / "table.csv", rows, METHOD)
    write_csv(folder / "forecast.csv", kernels, KERNEL)
    plot(rows, kernels, folder / "speed.svg")
    text = readme(lines, rows, kernels, ", ".join(file.name for file in files))
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(f"written to {folder}: README.md, table.csv, forecast.csv, speed.svg")


if __name__ == "__main__":
    run(main)
