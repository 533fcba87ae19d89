"""Hostile texts in all that a report writes: each file is parsed, and a spreadsheet or terminal has nothing to obey."""

import csv
import itertools
import json
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET

import fabricate
import pandas as pd
import pytest
import yaml
from justhtml import JustHTML
from markdown_it import MarkdownIt

from spectrum_bench.commands import evaluate, report
from spectrum_bench.commands.ending import fail
from spectrum_bench.errors import UserError
from spectrum_bench.reporting import cells
from spectrum_bench.reporting.formats import md, pipe_table
from spectrum_bench.sampling.prompts import read_prompt_file, read_prompts
from spectrum_bench.sampling.text import from_cell, to_cell
from spectrum_bench.scoring import results
from spectrum_bench.scoring.experiments import read_experiment

pytestmark = pytest.mark.slow

HOSTILE = {
    "every control character": "a" + "".join(map(chr, [*range(1, 32), *range(0x7F, 0xA0)])) + "b",
    "a terminal's title": "\x1b]0;pwned\x07x",
    "a terminal's colours": "\x1b[31mred\x9b0m",
    "no characters": "x\ufffe\uffff\ufdd0y",
    "a script": "<script>alert(1)</script>",
    "the end of a title": "</title></style><img src=x onerror=alert(2)>",
    "an attribute": "\" onmouseover=alert(3) x='",
    "a comment": "a --> <!-- b",
    "CDATA": "<![CDATA[ x ]]>",
    "a document type": '<!DOCTYPE x [<!ENTITY y "z">]>',
    "entities": "&lt;b&gt; &#0; &bogus; &amp",
    "a template": "{{ 7 * 7 }} {% raw %} {# x #}",
    "mathematics": r"$\frac{$ and $x_1$",
    "half of mathematics": r"\$5 and $6",
    "a hidden label": "_hidden",
    "an input": r"\input{/etc/passwd}",
    "a shell": r"\immediate\write18{id}",
    "braces": "}}{ \\end{document}",
    "a caret": "^^5cinput ^x ~y",
    "a comment of TeX": "100% #1 & more",
    "an argument": r"[1ex] \\[2pt] *",
    "columns": r"a|b\|c||d",
    "code": "`a` ```b",
    "a picture": "![x](http://evil.example/x.png)",
    "a link": "[x](javascript:alert(4)) <http://evil.example>",
    "stressed": "*a* **b** __c__ ~~d~~",
    "a heading": "# heading",
    "a list": "- item",
    "a number of a list": "1. item",
    "a definition": "[x]: http://evil.example",
    "lines": "one\n\n# two\n| three |",
    "a formula": "=1+1",
    "a command": "=cmd|' /C calc'!A0",
    "a link of a formula": '=HYPERLINK("http://evil.example","x")',
    "plus": "+1+2",
    "minus": "-2+3",
    "at": "@SUM(1)",
    "a tab and a formula": "\t=1+1",
    "a wide formula": "\uff1d1+1",
    "a quote and a formula": "'=1+1",
    "two quotes and a formula": "''=1+1",
    "quoted": '"=1+1",x',
    "a number": "-0.3",
    "from right to left": "\u202egnp.exe \u2066x\u2069",
    "joined": "e\u0301\u200d\U0001f9a5 \U0001f30c",
    "long": "very " * 2_000,
}
FIELDS = ("algo", "schedule", "site", "forecaster", "device", "git_sha")


def clean(text: str) -> str:
    """Without the characters that Unicode calls controls or none, in one line."""
    kept = [c for c in text if c in "\t\n" or unicodedata.category(c) not in ("Cc", "Cn")]
    return " ".join("".join(kept).split())


def score_and_report(folder, reference, out):
    evaluate.main([str(folder), f"reference={reference}", "metrics=psnr"])
    report.main([str(folder), f"reference={reference}", f"out={out}"])


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """The report of two methods on hostile prompts, under a hostile name, model's note and version."""
    home = tmp_path_factory.mktemp("prompted")
    prompts = list(HOSTILE.values())
    pictures = fabricate.pictures(prompts)
    note = "# a note\n\n1. " + " ".join(prompts[:-1])
    model = {"note": note}
    fabricate.experiment(home / "reference", prompts, pictures, model=model)
    for name, sigma in {"one": 5, "two": 9}.items():
        images = fabricate.noisy(pictures, sigma)
        fabricate.experiment(home / "runs" / name, prompts, images, name, 14, model=model, versions={"torch": note})
        path = home / "runs" / name / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"exp_name": f"=1+1\x1b{note}{name}"}))
    (home / "runs/one/failures").mkdir()
    failure = {"id": "x", "prompt_index": 0, "prompt": note, "seed": 1, "reason": note}
    (home / "runs/one/failures/x.json").write_text(json.dumps(failure))
    score_and_report(home / "runs", home / "reference", home / "out")
    return home / "out"


def named(home, devices):
    """The report of a method for each hostile text, which stands in all of its fields."""
    prompts = fabricate.captions(2)
    pictures = fabricate.pictures(prompts)
    fabricate.experiment(home / "reference", prompts, pictures)
    for i, text in enumerate(HOSTILE.values()):
        fields = {name: text for name in FIELDS if devices or name != "device"}
        fabricate.experiment(home / f"runs/{i}", prompts, fabricate.noisy(pictures, 5 + i), nfe=14, **fields)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "constrained_layout")  # of a drawing that labels leave no room for
        warnings.filterwarnings("ignore", "Glyph")
        score_and_report(home / "runs", home / "reference", home / "out")
    return home / "out"


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    """As many devices as methods: no speedups, more than 26 footnotes."""
    return named(tmp_path_factory.mktemp("methods"), devices=True)


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """One device: quality over speedup."""
    return named(tmp_path_factory.mktemp("timed"), devices=False)


@pytest.fixture(params=["prompted", "methods", "timed"])
def out(request):
    return request.getfixturevalue(request.param)


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pages_are_html(out):
    page = (out / "index.html").read_text(encoding="utf-8")
    document = JustHTML(page, sanitize=False, strict=True)
    assert len(document.query("script")) == 1 and not document.query("iframe, object, embed, link[href^=http]")
    for element in document.query("*"):
        assert not any(name.startswith("on") for name in element.attrs), element
        for name in ("src", "href"):
            assert re.match("data:|#", element.attrs.get(name) or "#"), element


def test_drawings_are_xml(out):
    for path in out.glob("*.svg"):
        names = {element.tag.partition("}")[2] for element in ET.parse(path).iter()}
        assert "path" in names and not names & {"script", "image", "foreignObject", "a"}


COMMANDS = r"""
\textbackslash{} \textasciitilde{} \textasciicircum{} \textdagger{} \textless{} \textgreater{} \textbar{}
\times \uparrow \downarrow \textsuperscript \texttt \textbf \scriptsize \rule \toprule \midrule \bottomrule
\begin \end \centering \setlength \tabcolsep \renewcommand \arraystretch \resizebox \linewidth \par \smallskip
\raggedright
"""


def test_tables_are_latex(out):
    text = (out / "table.tex").read_text(encoding="utf-8")
    _, _, body = text.partition("\n")  # a comment: which packages it needs
    tokens = re.findall(r"\\[a-zA-Z]+|\\.|.", body, re.DOTALL)
    words = {token for token in tokens if re.match(r"\\[a-zA-Z]", token)}
    assert words <= set(re.findall(r"\\\w+", COMMANDS))
    assert {token for token in tokens if re.match(r"\\[^a-zA-Z]", token)} <= {rf"\{c}" for c in "&%$#_{}\\"}
    depth = [*itertools.accumulate((token == "{") - (token == "}") for token in tokens)]
    assert min(depth) == 0 and depth[-1] == 0
    signs = [c for c in tokens if c in "$#^~%\t" or not (c.isprintable() or c == "\n")]
    assert set(signs) <= {"$", "%"} and signs.count("%") == body.count("{!}{%")
    assert signs.count("$") == 2 * len(re.findall(r"(?<!\\)\$\\(times|uparrow|downarrow)\$", body))
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1 and len(lines) > 4


def test_tables_are_markdown(out):
    page = (out / "table.md").read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(page)
    blocks = {token.type.rpartition("_")[0] for token in tokens} - {""}
    assert blocks == {"table", "thead", "tbody", "tr", "th", "td", "bullet_list", "list_item", "paragraph"}
    for each in (child for token in tokens for child in token.children or ()):
        assert each.type in ("text", "text_special", "strong_open", "strong_close") or each.content in TAGS, each


TAGS = ("<sup>", "</sup>", "<sub>", "</sub>")


def test_nothing_in_a_csv_is_a_formula(out):
    for path in out.glob("*.csv"):
        for row in rows_of(path):
            for cell in row.values():
                assert not cell or cell[0] not in "=+-@\t\r\n\uff1d" or re.fullmatch(r"-?[\d.e-]+", cell), cell
                assert cell.isprintable() or not any(unicodedata.category(c) == "Cc" for c in cell if c not in "\t\n")


def test_prompts_of_a_report_are_read_back(prompted):
    """By the reader of prompt files. It strips and joins lines, as it does for every list."""
    given = [clean(text) for text in HOSTILE.values()]
    assert [clean(text) for text in read_prompts(prompted / "prompts.csv")] == given * 3


def on_page(out, place):
    page = JustHTML((out / "index.html").read_text(encoding="utf-8"), sanitize=False)
    return {clean(element.to_text(strip=False, separator="")) for element in page.query(place)}


def test_prompts_are_shown_as_they_are(prompted):
    given = [clean(text) for text in HOSTILE.values()]
    assert on_page(prompted, "span.prompt") - {""} >= set(given[:16])  # as many as a page has by default
    assert {clean(from_cell(row["prompt"])) for row in rows_of(prompted / "prompts.csv")} == set(given)


def test_methods_are_shown_as_they_are(methods):
    given = {clean(text) for text in HOSTILE.values()}
    assert on_page(methods, ".figures td:first-child a") == given | {"reference"}
    tokens = MarkdownIt("commonmark").enable("table").parse((methods / "table.md").read_text(encoding="utf-8"))
    inline = [token for before, token in itertools.pairwise(tokens) if before.type == "td_open"]
    assert {clean("".join(child.content for child in token.children)) for token in inline} >= given
    assert {clean(from_cell(row["algo"])) for row in rows_of(methods / "table.csv")} == given | {"nocache"}


def test_more_footnotes_than_letters(methods):
    page = (methods / "table.md").read_text(encoding="utf-8")
    marks = re.findall(r"^- <sup>(\w+)</sup>", page, re.MULTILINE)
    assert len(set(marks)) == len(marks) > 40 and marks[25:28] == ["z", "aa", "ab"]
    assert set(re.findall(r"(?<!- )<sup>(\w+)</sup>", page)) == set(marks)
    marks = [*itertools.islice(cells._letters(), 26 + 26**2 + 1)]
    assert marks[-2:] == ["zz", "aaa"] and len(set(marks)) == len(marks)


def test_a_terminal_gets_no_control_characters(methods, prompted, capsys):
    for out in (methods, prompted):
        score_and_report(out.parent / "runs", out.parent / "reference", out)
    with pytest.raises(SystemExit):
        fail(UserError("a\x1b\x07 b"))
    output = "".join(capsys.readouterr())
    assert "error: a b" in output and not [c for c in output if unicodedata.category(c) == "Cc" and c != "\n"]


@pytest.mark.parametrize("name", HOSTILE)
def test_cells_are_read_back(name):
    text = HOSTILE[name]
    assert from_cell(to_cell(text)) == text and to_cell(text) in (text, f"'{text}")
    assert from_cell(to_cell(to_cell(text))) == to_cell(text)
    assert (to_cell(text) == text) == (not text.lstrip("'").startswith(tuple("=+-@\t\r\n\uff1d")) or text == "-0.3")


def test_an_id_that_begins_with_a_sign(tmp_path):
    prompts = fabricate.captions(1)
    pictures = fabricate.pictures(prompts)
    fabricate.experiment(tmp_path / "reference", prompts, pictures)
    fabricate.experiment(tmp_path / "fast", prompts, fabricate.noisy(pictures, 9), "fora", 14, id="-cmd")
    evaluate.main([str(tmp_path / "fast"), f"reference={tmp_path / 'reference'}", "metrics=psnr"])
    assert (tmp_path / "fast/metrics.csv").read_text().splitlines()[1].startswith("'-cmd,0,")
    scores, _ = results.load(read_experiment(tmp_path / "fast"), read_experiment(tmp_path / "reference"))
    assert list(scores.index) == [(0, 0)]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json", ".jsonl"])
def test_prompt_files_lose_control_characters(tmp_path, suffix):
    path = tmp_path / f"prompts{suffix}"
    text = "a \x1b[31mred\x9b\x7f\ttea\ufffe pot"
    path.write_text({".txt": text, ".csv": f"prompt,x\n{text},1\n"}.get(suffix, json.dumps([{"prompt": text}])))
    if suffix == ".jsonl":
        path.write_text(json.dumps({"prompt": text}))
    assert [prompt.text for prompt in read_prompt_file(path).lines] == ["a [31mred\ttea pot"]


def test_a_strangers_csv_is_read_as_it_is(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,n\n'@' on a wall,1\n")
    assert read_prompts(tmp_path / "x.csv") == ["'@' on a wall"]


def test_pipes_in_the_papers_table():
    table = pipe_table(pd.DataFrame([[md("a|b (c|d)"), "1"]], columns=["Row", "x"]))
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    assert [token.content for token in tokens if token.type == "inline"][2:] == [r"a|b (c|d)", "1"]
