"""report.py: the table's figures and footnotes, its formats, the plot's names, and a page that strings cannot break."""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import fabricate
import numpy as np
import pandas
import pytest
from helpers import examples
from PIL import Image

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import cells, formats, frames, notes, plots, tables
from spectrum_bench.reporting import page as report
from spectrum_bench.reporting.beside import Beside
from spectrum_bench.reporting.rows import Costs, Digest, Result, Row
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import find_experiments, read_experiment
from spectrum_bench.scoring.stats import Estimate

PROMPTS = [*fabricate.captions(6), *fabricate.HOSTILE]
PICTURES = fabricate.pictures(PROMPTS)
NOTE = "Miniatures prove nothing."


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of scored experiments: reference, re-run, two equals, one worse, one with fewer steps."""
    home = tmp_path_factory.mktemp("runs")

    def make(name, sigma, *arguments, **fields):
        images = fabricate.noisy(PICTURES, sigma, seed=len(name)) if sigma else PICTURES
        fabricate.experiment(home / name, PROMPTS, images, *arguments, model={"note": NOTE}, **fields)

    make("nocache", 0, forecaster="-", site="-")
    make("again", 0, forecaster="-", site="-")
    make("spectrum", 8, "spectrum", 14, site="LastBlock", schedule="adaptive_window(window=2, flex=0.75)")
    make("spectral", 8, "spectral", 14, site="LastBlock")
    make("fora", 25, "fora", 14, forecaster="reuse", site="Modules")
    make("steps", 30, "steps", 25, 25, forecaster="-", site="-")
    score(home, "again", "spectrum", "spectral", "fora", "steps")
    return home


def score(home, *names):
    list(evaluation.evaluate([read_experiment(home / n) for n in names], read_experiment(home / "nocache")))


def build(home, *names):
    names = names or ("fora", "steps", "spectrum", "spectral", "again", "nocache")
    return tables.build([read_experiment(home / n) for n in names], read_experiment(home / "nocache"))


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def test_rows_and_their_order(home):
    rows = build(home).rows
    assert [r.experiment.name for r in rows[:3]] == ["nocache", "again", "steps"]  # then by passes, then by PSNR
    assert {r.experiment.name for r in rows[3:5]} == {"spectrum", "spectral"} and rows[5].experiment.name == "fora"
    assert [r.role for r in rows[:3]] == ["reference", "noise floor", "method"]
    assert [r.passes for r in rows] == ["50/50", "50/50", "25/25", "14/50", "14/50", "14/50"]


def test_a_run_that_computes_every_step_through_a_site_is_no_method(home, tmp_path):
    """It measures the harness, takes no bold from the methods, and is no point of the plot."""
    pictures, reference = fabricate.pictures(PROMPTS), read_experiment(home / "nocache")
    for name, schedule in {"session": "full", "peer": "observed"}.items():  # a peer that never skips is a method
        fabricate.experiment(tmp_path / name, PROMPTS, pictures, "reuse", 50, schedule=schedule, site="LastBlock")
    added = [read_experiment(tmp_path / name) for name in ("session", "peer")]
    list(evaluation.evaluate(added, reference))
    table = tables.build([*added, read_experiment(home / "fora")], reference)
    assert [(r.experiment.name, r.role) for r in table.rows[1:3]] == [("session", "harness"), ("peer", "method")]
    assert "harness" not in plots.quality_speed(table.rows, ["psnr"])["svg"].decode()
    assert "through a session" in formats.markdown(table)


def test_figures_follow_from_the_records(home):
    rows = {row.experiment.name: row for row in build(home).rows}
    seconds = [0.1 + 0.02 * 14 + 0.001 * i for i in range(len(PROMPTS))]  # as fabricate.py makes them
    full = [0.1 + 0.02 * 50 + 0.001 * i for i in range(len(PROMPTS))]
    costs = rows["spectrum"].costs
    assert costs.latency_s == pytest.approx(np.median(seconds))
    assert costs.latency_p90_s == pytest.approx(np.quantile(seconds, 0.9))
    assert costs.speedup.mean == pytest.approx(np.median(full) / np.median(seconds))
    assert costs.speedup.low < costs.speedup.mean < costs.speedup.high and costs.speedup.n == len(PROMPTS)
    assert costs.skipped_step_s == 0.002 and costs.cache_bytes == 112 * 1024
    assert rows["nocache"].costs.speedup.mean == 1 and rows["steps"].costs.skipped_step_s is None
    flops = 14 * 2e12 + 36 * 1e11  # with fabricate.py's cost of a step
    assert costs.flops == flops and costs.flops_speedup == 50 * 2e12 / flops
    assert rows["nocache"].costs.flops_speedup == 1 and rows["steps"].costs.flops == 25 * 2e12
    assert rows["steps"].costs.flops_speedup == 2
    psnr = json.loads((home / "spectrum" / "summary.json").read_text())["metrics"]["psnr"]
    assert rows["spectrum"].results["psnr"].estimate == Estimate(psnr["mean"], *psnr["interval"], psnr["n"])


@pytest.mark.parametrize("cost,reason", [(None, "the run's own command"), (fabricate.PEERS, "other people's code")])
def test_operations_that_nobody_counted_are_a_dash(home, tmp_path, cost, reason):
    shutil.copytree(home, tmp_path / "runs")
    path = tmp_path / "runs" / "spectrum" / "cost.json"
    path.unlink() if cost is None else path.write_text(json.dumps(cost))
    table = build(tmp_path / "runs")
    row = [row.experiment.name for row in table.rows].index("spectrum")
    line = dict(zip(cells.head(table), cells.body(table)[row], strict=True))
    for title in ("TFLOPs", "FLOPs speedup"):
        assert line[title].text == cells.DASH and reason in line[title].reason
    assert dict(zip(cells.head(table), cells.body(table)[0], strict=True))["TFLOPs"].text == "100"


def best(table, metric="psnr"):
    return {row.experiment.name for row in table.rows if metric in row.results and row.results[metric].best}


def test_ties_share_the_bold(home):
    assert best(build(home)) == {"spectrum", "spectral"}
    assert not best(build(home, "spectrum", "spectral"))  # nothing is told apart


def test_the_cheapest_row_is_not_bold_for_being_cheap(home, tmp_path):
    """`lone` is the worst, and nobody has as few passes: on the front, but no better than anyone."""
    fabricate.experiment(home / "lone", PROMPTS, fabricate.noisy(PICTURES, 40), "lone", 5, site="Modules")
    score(home, "lone")
    try:
        table = build(home, "fora", "spectrum", "spectral", "lone", "steps")
    finally:
        shutil.rmtree(home / "lone")
    assert best(table) == {"spectrum", "spectral"}
    front = {row.experiment.name for row in table.methods if row.results["psnr"].front}
    assert front == {"lone", "spectrum", "spectral"}  # the two are equal
    signed = [line for line in formats.markdown(table).splitlines() if "†" in line and line.startswith("| ")]
    assert len(signed) == 3 and sum("**" in line for line in signed) == 2
    assert r"\textdagger{}" in formats.latex(table) and "†" in formats.plain(table)


@pytest.mark.parametrize("steps,said", [(50, False), (28, True)])
def test_a_table_says_which_time_spectrum_runs_over(tmp_path, steps, said):
    """At 50 steps it is the published one."""
    forecaster = f"spectrum(degree=4, ridge=0.1, blend=1.0, steps={steps})"
    fabricate.experiment(tmp_path / "nocache", PROMPTS, PICTURES, "nocache", steps, steps)
    noisy = fabricate.noisy(PICTURES, 9)
    fabricate.experiment(tmp_path / "spectrum", PROMPTS, noisy, "spectrum", 9, steps, forecaster=forecaster)
    score(tmp_path, "spectrum")
    written = " ".join(build(tmp_path, "spectrum").notes)
    assert ("Spectrum's time runs over 28 steps; the published code has 50" in written) == said
    told = build(tmp_path, "spectrum").rows[1].forecaster  # by the names that the command line has: algo.w
    assert told == f"spectrum(m=4, lam=0.1, w=1.0, steps={steps})"


def test_rows_that_agree_in_every_digit_say_why(home, tmp_path):
    told = [note for note in build(home).notes if "agree in every digit" in note]
    same = (
        "spectrum = spectral (the same scores: they compute the same steps and put the same features into skipped ones)"
    )
    assert told == [f"Rows that agree in every digit: {same}."]
    assert not [note for note in build(home, "spectrum", "fora", "again").notes if "every digit" in note]


def test_a_table_without_latency_says_what_to_type(tmp_path):
    fabricate.experiment(tmp_path / "nocache", PROMPTS, PICTURES)
    fabricate.experiment(tmp_path / "fora", PROMPTS, fabricate.noisy(PICTURES, 9), "fora", 14, alone=False)
    score(tmp_path, "fora")
    told = formats.plain(build(tmp_path, "fora"))
    assert "the device did other work meanwhile" in told and "exp_name=" in told and "total_prompt_num=8" in told


def test_latency_is_of_the_samples_that_ran_alone(tmp_path):
    folder = fabricate.experiment(tmp_path / "nocache", PROMPTS, PICTURES)
    fabricate.experiment(tmp_path / "fora", PROMPTS, fabricate.noisy(PICTURES, 9), "fora", 14)
    score(tmp_path, "fora")
    assert "Latency is the median of a sample," in formats.plain(build(tmp_path, "fora"))
    lines = (folder / "records.jsonl").read_text().splitlines()
    busy = [line.replace('"alone": true', '"alone": false') for line in lines[1:]]
    (folder / "records.jsonl").write_text("\n".join([lines[0], *busy]) + "\n")
    score(tmp_path, "fora")
    assert f"the median of the samples that ran alone (1 of {len(lines)})," in formats.plain(build(tmp_path, "fora"))


def test_passes_sort_as_they_look(home):
    row = build(home).rows[3]
    row.costs = replace(row.costs, passes=13.984)
    assert row.passes == "13.98/50"


@pytest.mark.parametrize(
    "site,method",
    [
        ("DiffusersCache(config=TaylorSeerCacheConfig)", "TaylorSeerCache"),
        ("CacheDiT", "DBCache"),
        ("CacheDiT(calibrator=FoCaCalibratorConfig)", "DBCache, FoCaCalibrator"),
    ],
)
def test_a_peers_row_names_the_peers_method(tmp_path, site, method):
    fabricate.experiment(tmp_path / "nocache", PROMPTS, PICTURES)
    noisy = fabricate.noisy(PICTURES, 9)
    fabricate.experiment(
        tmp_path / "peer", PROMPTS, noisy, "peer", 14, forecaster="reuse", schedule="observed", site=site
    )
    score(tmp_path, "peer")
    table = build(tmp_path, "peer")
    assert cells.body(table)[1][0].small == method and "reuse" not in formats.markdown(table)


def test_dashes_say_why(home):
    table = build(home)
    reasons = cells.marks(table)
    for words in (
        "what the other rows are measured against",
        "backbone weights",
        "names no judge",
        "no step is skipped",
    ):
        assert sum(words in reason for reason in reasons) == 1, words
    for line in cells.body(table):
        assert all((cell.text == "—") == (cell.reason is not None) for cell in line)


def test_speedup_needs_one_device(home, tmp_path):
    fabricate.experiment(tmp_path / "nocache", PROMPTS, PICTURES, device="a fast one")
    fabricate.experiment(tmp_path / "fora", PROMPTS, fabricate.noisy(PICTURES, 9), "fora", 14)
    score(tmp_path, "fora")
    row = build(tmp_path, "fora").rows[1]
    assert row.costs.speedup is None
    assert row.costs.no_speedup == "a speedup needs one device, these are a fast one, test machine"
    plot = plots.quality_speed([row], ["psnr"])
    assert b"14/50 passes" in plot["svg"] and b"measured" not in plot["svg"]
    assert plot["png"].startswith(b"\x89PNG")


def test_a_panel_a_metric_and_the_methods_that_none_beats(home):
    rows = build(home).rows
    drawn = plots.quality_speed(rows, ["psnr", "ssim"])["svg"]
    assert b"PSNR dB" in drawn and b"SSIM" in drawn and drawn.count(b"speedup over the reference, measured") == 2
    front = [row.experiment.name for row in plots.frontier([r for r in rows if r.role == "method"], "psnr")]
    assert len(front) == 1 and front[0] in ("spectrum", "spectral")  # of those that are as fast the better
    points = ((1, 0.1), (2, 0.2), (1.5, 0.3))
    costs = [Costs(50, 10, speedup=Estimate(speedup)) for speedup, _ in points]
    results = [{"lpips": Result(Estimate(lpips))} for _, lpips in points]
    slow, fast, poor = (Row(None, "method", [], {}, Digest(), *pair) for pair in zip(costs, results, strict=True))
    assert plots.frontier([fast, poor, slow], "lpips") == [slow, fast]


def test_nothing_measured(tmp_path):
    fabricate.experiment(tmp_path / "nocache", PROMPTS[:2], PICTURES[:2])
    fabricate.experiment(tmp_path / "fora", PROMPTS[:2], fabricate.noisy(PICTURES[:2], 9), "fora", 14, latency={})
    score(tmp_path, "fora")
    fora = cells.body(build(tmp_path, "fora"))[1]
    assert [cell.reason for cell in fora if cell.reason][:2] == ["not measured", "not measured"]


def test_the_gpus_peak_stands_below_the_cache(tmp_path):
    fabricate.experiment(tmp_path / "nocache", PROMPTS[:2], PICTURES[:2])
    noisy, peak = fabricate.noisy(PICTURES[:2], 9), 35 * 2**30
    fabricate.experiment(tmp_path / "fora", PROMPTS[:2], noisy, "fora", 14, peak_memory_bytes=peak)
    score(tmp_path, "fora")
    rows = cells.body(build(tmp_path, "fora"))
    assert [(row[-1].text, row[-1].small) for row in rows] == [("0 KiB", ""), ("112 KiB", "GPU peak 35.0 GiB")]


def test_seeds_are_told_in_few_words():
    assert [notes.spans(each) for each in ([42], [7, 6], {3, 1, 2, 9, 11, 12})] == ["42", "6, 7", "1 to 3, 9, 11, 12"]


def test_notes(home):
    written = "\n".join(build(home).notes)
    for words in (
        f"{len(PROMPTS)} prompts ({len(PROMPTS)} samples, seed 0) against nocache",
        "Device: test machine. Versions: torch 2.14.1. Code: 0123456789abcdef.",
        f"counted as 100 dB: again {len(PROMPTS)} of {len(PROMPTS)}",
        "Sanity, the reference against shuffled prompts: psnr",
        NOTE,
    ):
        assert words in written


def test_rows_are_compared_on_the_samples_that_all_have(tmp_path):
    fabricate.experiment(tmp_path / "nocache", PROMPTS[:5], PICTURES[:5])
    fabricate.experiment(tmp_path / "fora", PROMPTS[:5], fabricate.noisy(PICTURES[:5], 9), "fora", 14)
    fabricate.experiment(tmp_path / "few", PROMPTS[:3], fabricate.noisy(PICTURES[:3], 9), "few", 14)
    score(tmp_path, "fora", "few")
    table = build(tmp_path, "fora", "few")
    assert [len(row.records) for row in table.rows] == [3, 3, 3]
    assert "Samples that not every row has are left out: 2 of fora." in table.notes
    assert "So few prompts make for rough intervals and ties." in table.notes


def test_names_tell_rows_apart(tmp_path):
    pictures = PICTURES[:2]
    fabricate.experiment(tmp_path / "nocache", PROMPTS[:2], pictures)
    kinds = {
        "a": ("Modules", "taylor(order=1)"),
        "b": ("LastBlock", "taylor(order=1)"),
        "c": ("LastBlock", "taylor(order=2)"),
    }
    for name, (site, forecaster) in kinds.items():
        images = fabricate.noisy(pictures, 9)
        fabricate.experiment(tmp_path / name, PROMPTS[:2], images, "taylor", 14, site=site, forecaster=forecaster)
    images = fabricate.noisy(pictures, 9)
    same = {"site": "LastBlock", "forecaster": "taylor(order=2)", "schedule": "warm_uniform(interval=4)"}
    fabricate.experiment(tmp_path / "d", PROMPTS[:2], images, "taylor", 10, **same)
    score(tmp_path, *"abcd")
    names = {r.experiment.name: r.name for r in build(tmp_path, *"abcd").rows}
    assert names == {
        "nocache": "reference",
        "a": "taylor Modules",
        "b": "taylor LastBlock order=1",
        "c": "taylor LastBlock order=2 adaptive window",
        "d": "taylor LastBlock order=2 warm uniform",
    }


def test_stale_or_missing_scores(home, tmp_path):
    fabricate.experiment(tmp_path / "nocache", PROMPTS[:2], PICTURES[:2])
    fora = fabricate.experiment(tmp_path / "fora", PROMPTS[:2], fabricate.noisy(PICTURES[:2], 9), "fora", 14)
    command = f"python src/evaluate.py {fora} reference={tmp_path / 'nocache'}"
    with pytest.raises(UserError, match=re.escape(f"{fora} is not scored: {command}")):
        build(tmp_path, "fora")
    score(tmp_path, "fora")
    records = tmp_path / "nocache" / "records.jsonl"
    kept = records.read_text()
    records.write_text(kept.replace('"total": ', '"total": 1'))
    with pytest.raises(UserError, match=re.escape(command)):
        build(tmp_path, "fora")
    records.write_text(kept)
    build(tmp_path, "fora")
    (fora / "summary.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read: python src/evaluate.py"):
        build(tmp_path, "fora")
    with pytest.raises(UserError, match="nothing to compare"):
        build(tmp_path, "nocache")


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def hostile_table(home):
    table = build(home)
    for row in table.rows:
        row.records = [replace(record, algo=r"a_b & 100% $x$ #1 {y} ~ ^ \ | <b>*[z]*`") for record in row.records]
    return table


def test_markdown_keeps_its_columns(home):
    table = hostile_table(home)
    lines = formats.markdown(table).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 8 and {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {len(cells.head(table)) + 1}
    assert "<b>" not in "".join(lines)
    assert r"a\_b \& 100% \$x\$ #1 {y} \~ ^ \\ \| \<b\>\*\[z\]\*\`" in lines[4]


def test_latex_is_escaped_and_balanced(home):
    table = hostile_table(home)
    for row in table.rows:
        row.name = row.algo
    text = formats.latex(table)
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 2 * 6
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(cells.head(table)) - 3}
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}") and "#" not in bare and "_" not in bare and "^" not in bare
    assert all(line.startswith("% needs") for line in bare.splitlines() if line.replace(r"{!}{%", "").count("%"))
    assert r"a\_b \& 100\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{} \textbar{}" in text
    assert r"\textbf{30" in text or r"\textbf{29" in text


@pytest.mark.slow
@pytest.mark.parametrize("copies, parts", [(1, 1), (6, 2)])
def test_latex_compiles(home, tmp_path, copies, parts):
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex: apt-get install -y texlive-latex-recommended")
    table = build(home)
    for row, name in zip(table.rows[1:], [*fabricate.HOSTILE[:4], "naïve Łódź «σ» ≤ [3]"], strict=True):
        row.name = name
    table.notes.append(" ".join(fabricate.HOSTILE)[:500])
    table.rows *= copies
    text = formats.latex(table)
    assert text.count(r"\begin{table*}") == parts
    (tmp_path / "table.tex").write_text(text)
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Float too large" not in done.stdout


def test_csv_is_unrounded(home):
    table = hostile_table(home)
    rows = list(csv.DictReader(io.StringIO(formats.csv(frames.results(table)))))
    assert [float(line["psnr"]) if line["psnr"] else None for line in rows] == [row.mean("psnr") for row in table.rows]
    assert [line["algo"] for line in rows] == [row.algo for row in table.rows]
    assert rows[0]["lpips"] == "" and rows[3]["psnr_best"] == "True"


def test_columns_of_csv_keep_their_names(home):
    """results/ and its readers know them."""
    score = ["", "_low", "_high", "_best", "_front"]
    metrics = [f"{name}{end}" for name in ("psnr", "ssim", "lpips", "caption") for end in score]
    best = [f"{name}_minus_best{end}" for name in ("psnr", "ssim") for end in score[:3]]
    assert list(frames.results(build(home)).columns) == [
        *("role", "experiment", "algo", "forecaster", "schedule", "site", "steps", "passes", "samples", "prompts"),
        *("device", "git_sha", "latency_s", "latency_p90_s", "full_step_s", "skipped_step_s", "cache_bytes"),
        *("peak_memory_bytes", "flops", "flops_speedup", "speedup", "speedup_low", "speedup_high", *metrics, *best),
    ]


def test_code_that_no_commit_holds_is_told(home, tmp_path):
    """In the table's note and in its CSV, in full; a row made of two versions of the code names both."""
    folder = tmp_path / "mixed"
    fabricate.experiment(folder, PROMPTS, fabricate.noisy(PICTURES, 8), "mine", 14, git_sha="fedcba987654-dirty")
    records = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records[-1] = records[-1].replace("fedcba987654-dirty", "0123456789ab")
    (folder / "records.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    reference = read_experiment(home / "nocache")
    list(evaluation.evaluate([read_experiment(folder)], reference))
    table = tables.build([read_experiment(folder)], reference)
    assert list(frames.results(table)["git_sha"])[-1] == "fedcba987654-dirty, 0123456789ab"
    assert "Code: 0123456789abcdef, fedcba987654-dirty, 0123456789ab." in formats.markdown(table)


def test_a_new_format_is_one_function(home, monkeypatch):
    place, code = "src/spectrum_bench/reporting/formats.py", examples()
    scope = dict(vars(formats))
    exec(code[f"function in {place}"], scope)
    for name, function in eval(f"{{{code[f'entry in FORMATS of {place}']}}}", scope).items():
        monkeypatch.setitem(formats.FORMATS, name, function)
    files = formats.render(build(home))
    assert {"table.md", "table.csv", "table.tex", "plot.svg"} < files.keys()
    lines = re.findall(r"<tr>(.*?)</tr>", files["table.html"].decode(), re.DOTALL)
    assert len(lines) == 6 and all("<td>50/50</td>" in line for line in lines[:2])  # the head has a style


def test_markdown_is_as_narrow_as_it_can_be():
    frame = pandas.DataFrame({"Method": ["a|b", ""], "PSNR dB ↑": ["1.0", "—"], "1": ["01", "1e3"]})
    lines = ["| Method | PSNR dB ↑ | 1 |", "|---|--:|--:|", "| a|b | 1.0 | 01 |", "|  | — | 1e3 |"]
    assert formats.pipe_table(frame).splitlines() == lines  # escapes nothing, and takes no text for a number


def test_plain_marks_what_is_best(home):
    text = formats.plain(build(home))
    starred = [line.split()[0] for line in text.splitlines() if re.search(r"\d\.\d+\*", line)]
    assert sorted(starred) == ["spectral", "spectrum"]


# ---------------------------------------------------------------------------------------------------------------------
# Page


class Page(HTMLParser):
    """What a browser would load and show."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts, self.handlers = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [
            v for k, v in attributes if k in ("src", "data-src", "href", "xlink:href", "action", "data", "poster")
        ]
        self.handlers += [k for k, _ in attributes if k.startswith("on")]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def written(home, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    experiments = [read_experiment(f) for f in find_experiments([home])]
    report.write_report(experiments, read_experiment(home / "nocache"), out, rows=20)
    return out


def test_files(written):
    names = ["index.html", "plot.png", "plot.svg", "prompts.csv", "table.csv", "table.md", "table.tex"]
    assert {p.name for p in written.iterdir()} >= set(names)


def test_page_is_self_contained_and_escaped(written):
    text = (written / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 1 and page.handlers == []
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", text)
    for prompt in fabricate.HOSTILE:
        assert page.texts.count(prompt) >= 1  # and where it is among the worst
    images = [link for link in page.links if link.startswith("data:image/png")]
    assert len(images) == 6 * len(PROMPTS)  # those among the worst are not repeated


@pytest.mark.slow
def test_page_caps_prompts_and_shrinks_pictures(tmp_path):
    prompts = PROMPTS[:3]
    pictures = fabricate.pictures(prompts, side=600)
    fabricate.experiment(tmp_path / "nocache", prompts, pictures)
    fabricate.experiment(tmp_path / "fora", prompts, fabricate.noisy(pictures, 20), "fora", 14)
    score(tmp_path, "fora")
    report.write_report(
        [read_experiment(tmp_path / "fora")], read_experiment(tmp_path / "nocache"), tmp_path / "out", 2
    )
    text = (tmp_path / "out" / "index.html").read_text()
    assert "the first 2 of 3" in text and "coded with loss" in text and len(text) < 500_000
    assert text.count("data:image/jpeg;base64,") == 6  # the third is among the worst


def test_pictures_beside_prompts_are_shown_while_they_are_the_same(tmp_path):
    given, other = (fabricate.pictures(PROMPTS[k : k + 1])[0] for k in (1, 2))
    Image.fromarray(given).save(tmp_path / "ring.png")
    prompts, hashed = PROMPTS[:2], hashlib.sha256((tmp_path / "ring.png").read_bytes()).hexdigest()
    lines = [json.dumps({"prompt": prompt, "image": "ring.png"}) for prompt in prompts]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    fields = {"inputs": {"image": hashed}, "target_caption": "a <b>ring</b>"}
    folder = fabricate.experiment(tmp_path / "nocache", prompts, PICTURES[:2], **fields)
    with (folder / "config.yaml").open("a") as config:
        config.write(f"prompt_file: {tmp_path}/list.jsonl\nprompt_column: null\n")

    def shown() -> list[np.ndarray]:
        run = read_experiment(folder)
        found = [each for record in run.records for each in Beside(run, 4).of(record)]
        assert {name for name, *_ in found} <= {"image"}
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for _, uri, _ in found]

    assert [np.array_equal(picture, given) for picture in shown()] == [True, True]
    fabricate.experiment(tmp_path / "fora", prompts, PICTURES[:2], "fora", 14, **fields)
    score(tmp_path, "fora")
    text = report.page(build(tmp_path, "fora"), {}, rows=1)
    assert text.count('class="beside"') == 1 and "<figcaption>image</figcaption>" in text
    assert text.count("should show: a &lt;b&gt;ring&lt;/b&gt;") == 1
    Image.fromarray(other).save(tmp_path / "ring.png")
    assert shown() == []
    (tmp_path / "list.jsonl").unlink()
    assert shown() == []


def test_many_pictures_are_smaller(tmp_path):
    for side, one, many in ((64, "png", "png"), (200, "png", "jpeg"), (600, "jpeg", "jpeg")):
        folder = fabricate.experiment(tmp_path / str(side), PROMPTS[:1], fabricate.pictures(PROMPTS[:1], side))
        experiment = read_experiment(folder)
        shown = [report.thumbnail(experiment, experiment.records[0], count)[0] for count in (1, 2600)]
        assert [uri.split(";")[0] for uri in shown] == [f"data:image/{one}", f"data:image/{many}"]
        assert len(shown[1]) * 2600 < 80e6 and (len(shown[1]) < len(shown[0]) or side == 64)


def test_find_experiments(home, tmp_path):
    assert len(find_experiments([home])) == 6
    assert find_experiments([home / "fora"]) == [home / "fora"]
    with pytest.raises(UserError, match="no experiment directory in"):
        find_experiments([tmp_path])


def test_a_run_without_samples_is_left_out(tmp_path, caplog):
    for name in ("nocache", "fora"):
        fabricate.experiment(tmp_path / "runs" / name, PROMPTS[:2], PICTURES[:2])
    (tmp_path / "runs/compiled").mkdir()
    (tmp_path / "runs/compiled/config.yaml").write_text("exp_name: compiled\n")
    (tmp_path / "runs/empty").mkdir()
    (tmp_path / "runs/empty/records.jsonl").write_text("")
    assert find_experiments([tmp_path / "runs"]) == [tmp_path / "runs/fora", tmp_path / "runs/nocache"]
    assert caplog.text.count("left out: ") == 2
    with pytest.raises(UserError, match="no sample in .*empty: run the experiment first"):
        find_experiments([tmp_path / "runs/empty"])


def test_rows_are_prompts_not_samples(tmp_path):
    """Two seeds of four prompts: rows=1 shows the two pictures of one."""
    for name, images in (("nocache", PICTURES[:8]), ("fora", fabricate.noisy(PICTURES[:8], 9))):
        folder = fabricate.experiment(tmp_path / name, PROMPTS[:8], images, "nocache" if name == "nocache" else name)
        records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        for i, record in enumerate(records):
            record |= {"prompt_index": i // 2, "prompt": PROMPTS[i // 2], "seed": i % 2}
        (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    score(tmp_path, "fora")
    html = report.page(build(tmp_path, "fora"), {}, rows=1)
    assert html.count(" · seed 0</span>") == html.count(" · seed 1</span>") == 1


def test_a_pooled_metric_needs_the_same_samples_in_every_row():
    """VBench's standard score weighs a clip by how many there are: one that is lost changes all the others."""

    def scored(values):
        index = pandas.MultiIndex.from_tuples([(i, 0) for i in range(len(values))])
        scores = pandas.DataFrame({"vbench_standard": values, "vbench_standard_reference": 0.5}, index)
        return tables.Scored(None, scores, Digest(metrics=("vbench_standard",)))

    nan = float("nan")
    whole = [scored([0.5, 0.6, nan]), scored([0.4, 0.7, nan])]  # nothing is asked of the third
    tables.leave_out_uneven(whole)
    assert whole[0].scores.vbench_standard[1, 0] == 0.6 and not whole[0].digest.unavailable
    uneven = [scored([0.5, 0.6, nan]), scored([0.4, nan, nan])]
    tables.leave_out_uneven(uneven)
    for each in uneven:
        assert each.scores.isna().all().all()
        assert "some rows lack samples" in each.digest.unavailable["vbench_standard"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{home}", "reference={home}/nocache"], "out= is missing"),
        (["{home}", "reference={home}/nocache", "out={out}", "rows=many"], "rows=many is no number of prompts"),
        (["{home}", "reference={home}/nocache", "out={out}", "row=3"], "no key row: did you mean rows=3?"),
        (["{home}", "reference={home}/nocache", "out=/proc/nothing"], "choose another out=<folder>"),
        (["{out}", "reference={home}/nocache", "out={out}"], "no experiment directory in"),
    ],
)
def test_bad_command_lines(home, tmp_path, arguments, words):
    found = fabricate.run_script("report.py", *(a.format(home=home, out=tmp_path) for a in arguments))
    assert found.returncode == 1 and found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert words in found.stderr


@pytest.mark.slow
def test_script(home, tmp_path):
    found = fabricate.run_script("report.py", home, f"reference={home / 'nocache'}", f"out={tmp_path}", "rows=2")
    assert found.returncode == 0 and found.stderr == ""
    assert found.stdout.startswith("Method ") and str(tmp_path / "index.html") in found.stdout.splitlines()[-1]
