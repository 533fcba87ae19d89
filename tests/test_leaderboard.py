"""The leaderboard: every row of results/ is on it, ties look like ties, and texts stay texts."""

import base64
import io
import json
import re
import shlex
from pathlib import Path

import fabricate
import numpy as np
import pytest
import yaml
from helpers import chromium
from PIL import Image

from spectrum_bench.commands import leaderboard
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.reporting.board import chance, page, read, samples
from spectrum_bench.scoring.experiments import read_experiment

HEAD = "role,experiment,algo,forecaster,schedule,site,steps,passes,samples,prompts,device,git_sha,speedup,"
HEAD += "psnr,psnr_low,psnr_high"
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def ours() -> read.Results:
    return read.read(ROOT / "results")


def table(folder: Path, *rows: str, scores: dict[str, list[float]] | None = None) -> Path:
    """A table.csv, and prompts.csv beside it: row -> PSNR by prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    lines = ["prompt_index,seed,prompt,method,experiment,psnr"]
    for name, values in (scores or {}).items():
        lines += [f'{i},0,"{HOSTILE}",{name},{name},{value}' for i, value in enumerate(values)]
    (folder / "prompts.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def row(name: str, psnr: float, passes: float = 14, role: str = "method") -> str:
    return f"{role},{name},{name},reuse,uniform,-,50,{passes},20,20,cpu,abc,3,{psnr},{psnr - 1},{psnr + 1}"


def test_every_line_of_every_table_is_a_row(ours):
    lines = {path: len(read.read_lines(path)) for path in (ROOT / "results").rglob("table.csv")}
    found = [entry.file for entry in ours.entries]
    assert len(lines) > 30
    for path, count in lines.items():
        assert found.count(path.relative_to(ROOT).as_posix()) == count, path
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "results").rglob("*.csv")}
    assert files == {*found, *ours.others}  # a file is read, or listed as one without rows


def test_every_row_has_a_model_and_a_command_that_exists(ours):
    experiments = {path.stem for path in (ROOT / "configs/experiment").glob("*.yaml")}
    for entry in ours.entries:
        assert entry.model, entry.file
        if entry.status == "cited":
            continue
        words = [word for word in shlex.split(entry.command) if not re.match(r"[A-Z]+=", word)]
        assert words[0] in ("bash", "python") and (ROOT / words[1]).is_file(), entry
        assert words[1] != "scripts/reproduce.sh" or words[3] in experiments, entry
        models = [word for word in words if word.startswith("tiny-")]
        assert not models or models == [entry.model]


def test_withdrawn_rows_are_marked_with_their_reason(ours):
    listed = (ROOT / "results/WITHDRAWN.md").read_text()
    withdrawn = [entry for entry in ours.entries if entry.status == "withdrawn"]
    assert bool(withdrawn) == ("| `" in listed)
    assert all(entry.withdrawn and entry.beaten_by is None for entry in withdrawn)
    beaters = {(e.file, i) for e in ours.entries for places in (e.beaten_by or {}).values() for i in places}
    first = {}
    for number, entry in enumerate(ours.entries):
        first.setdefault(entry.file, number)
    assert not {(e.file, n - first[e.file]) for n, e in enumerate(ours.entries) if e.withdrawn} & beaters


def test_a_figure_is_the_one_of_the_table(ours):
    entry = next(e for e in ours.entries if e.file == "results/tiny/flux/slow/table.csv" and e.name == "hindcast-slow")
    line = next(each for each in read.read_lines(ROOT / entry.file) if each["experiment"] == "hindcast-slow")
    assert entry.model == "tiny-flux" and entry.command == "BUDGETS=slow bash scripts/tiny_table.sh tiny-flux"
    assert entry.scores["psnr"] == tuple(float(line[key]) for key in ("psnr", "psnr_low", "psnr_high"))
    assert entry.speedup == tuple(float(line[key]) for key in ("speedup", "speedup_low", "speedup_high"))
    assert entry.beaten_by["psnr"] == []


def test_a_clear_difference_beats_and_a_tie_does_not(tmp_path):
    noise = np.random.default_rng(1).normal(0, 2, 20)
    scores = {"good": list(40 + noise), "same": list(40.05 + noise[::-1]), "bad": list(37 + noise)}
    table(tmp_path / "results/gpu/flux/a", *(row(name, np.mean(each)) for name, each in scores.items()), scores=scores)
    good, same, bad = read.read(tmp_path / "results").entries
    assert good.beaten_by["psnr"] == same.beaten_by["psnr"] == []
    assert bad.beaten_by["psnr"] == [0, 1]  # always 3 dB below the first one, prompt by prompt
    assert good.model == "flux"  # results/<GPU>/<model>


def test_few_prompts_tell_nothing(tmp_path):
    scores = {"good": [40.0] * (chance.FEWEST - 1), "bad": [30.0] * (chance.FEWEST - 1)}
    table(tmp_path / "results/gpu/flux/a", row("good", 40), row("bad", 30), scores=scores)
    assert [entry.beaten_by for entry in read.read(tmp_path / "results").entries] == [None, None]


def test_a_lower_lpips_is_better():
    rows = [{"experiment": name, "role": "method", "passes": "14"} for name in "ab"]
    scores = [
        {"prompt_index": str(i), "experiment": n, "lpips": v}
        for i in range(12)
        for n, v in (("a", "0.1"), ("b", "0.3"))
    ]
    assert chance.beaten(rows, scores, ["lpips"]) == [{"lpips": []}, {"lpips": [0]}]


def test_a_reviewers_line_makes_a_row_verified(tmp_path):
    home = tmp_path / "results/gpu/flux"
    table(home / "a", row("fora", 30))
    (home / "README.md").write_text(
        "Made by `python src/report.py runs`.\n\nverified by A. Reviewer, on H100, 2026-11-27\n"
    )
    (entry,) = read.read(tmp_path / "results").entries
    assert entry.status == "verified by A. Reviewer, on H100, 2026-11-27"
    assert entry.command == "python src/report.py runs"


def test_data_stay_data_in_the_page(tmp_path):
    table(tmp_path / "results/gpu/flux/a", row(f'"{HOSTILE}"', 30), scores={"x": [1.0]})
    leaderboard.main([f"results={tmp_path / 'results'}", f"out={tmp_path / 'page.html'}"])
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text and text.count("</script") == 2
    data = re.search(r'class="sb-data">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(data)["rows"][0]["name"] == HOSTILE
    assert "onerror" not in re.sub(r'class="sb-data">.*?</script>', "", text, flags=re.DOTALL)


def test_samples_of_a_run_at_hand_stand_beside_its_row(tmp_path):
    prompts = [*fabricate.captions(3), HOSTILE]
    pictures = fabricate.pictures(prompts)
    for name in ("fora", "other"):
        fabricate.experiment(tmp_path / "runs" / name, prompts, pictures, "fora", 14)
    (commit,) = {record.git_sha for record in read_experiment(tmp_path / "runs/fora").records}
    table(tmp_path / "results/gpu/tiny-flux/a", row("fora", 30).replace(",abc,", f",{commit},"), row("elsewhere", 30))
    leaderboard.main(
        [f"{key}={tmp_path / value}" for key, value in (("results", "results"), ("runs", "runs"), ("out", "p.html"))]
    )
    text = (tmp_path / "p.html").read_text()
    assert "<img" not in text and text.count("</script") == 2
    shown = json.loads(re.search(r'class="sb-data">(.*?)</script>', text, re.DOTALL)[1])["pictures"]
    assert list(shown) == ["0"] and [each["prompt"] for each in shown["0"]] == prompts[: samples.FEW]
    first = Image.open(io.BytesIO(base64.b64decode(shown["0"][0]["uri"].partition(",")[2])))
    assert np.array_equal(np.asarray(first.convert("RGB")), pictures[0])


def test_a_run_of_another_commit_is_not_the_rows(tmp_path):
    fabricate.experiment(
        tmp_path / "runs/fora", fabricate.captions(3), fabricate.pictures(fabricate.captions(3)), "fora", 14
    )
    table(tmp_path / "results/gpu/tiny-flux/a", row("fora", 30))
    (entry,) = read.read(tmp_path / "results").entries
    assert samples.run_of(entry, [read_experiment(tmp_path / "runs/fora")]) is None


def test_the_page_is_small_and_fetches_nothing(tmp_path):
    leaderboard.main([f"out={tmp_path / 'page.html'}"])
    text = (tmp_path / "page.html").read_text()
    assert len(text.encode()) < 2e6
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text) and "default-src 'none'" in text


@pytest.mark.parametrize(
    "words, message",
    [
        (["results=nowhere"], "there is no folder nowhere"),
        (["results={}"], "no table in"),
        (["out={}"], "is a folder: name a file"),
        (["of=x"], "no key of"),
    ],
)
def test_refusals_are_one_line(tmp_path, words, message):
    with pytest.raises(UserError, match=message) as refusal:
        leaderboard.main([word.format(tmp_path) for word in words])
    assert "\n" not in str(refusal.value)


def test_a_damaged_table_is_refused_by_name(tmp_path):
    path = table(tmp_path / "results/gpu/flux/a", row("fora", 30) + ",one,more")
    with pytest.raises(UserError, match=f"{path} is damaged: a line has more or fewer cells"):
        read.read(tmp_path / "results")


def test_models_that_the_page_knows_exist():
    known = yaml.safe_load((ROOT / "results/board.yaml").read_text())["models"]
    printed = {entry.model for entry in read.read(ROOT / "results").entries if entry.status == "cited"}
    for model, names in known.items():
        assert (ROOT / f"configs/model/{model}.yaml").is_file() and (
            ROOT / f"configs/model/{names['miniature']}.yaml"
        ).is_file()
        assert names.get("paper") in {None, *printed}


def test_costs_are_of_known_models():
    costs = page.read_costs(ROOT / "results")
    computed = {line["model"] for line in costs}
    assert len(computed) > 10 and computed <= {path.stem for path in (ROOT / "configs/architectures").glob("*.json")}
    assert all(int(line["weights_bytes"]) > 1e9 for line in costs)


# ---------------------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    home = tmp_path_factory.mktemp("board")
    made = chromium(home / "profile")
    leaderboard.main([f"out={home / 'page.html'}"])
    yield made, (home / "page.html").as_uri()
    made.quit()


@pytest.fixture
def board(driver):
    made, address = driver
    made.get(address)
    yield made
    assert made.get_log("browser") == []


def cells(board, column: int) -> list[str]:
    script = "const rows = [...document.querySelectorAll('.sb-rows tbody tr')];"
    return board.execute_script(
        script + "return rows.map(r => r.children[arguments[0]].innerText.split('\\n')[0])", column
    )


def put(board, **values: str) -> None:
    script = "const f = document.querySelector('form[data-for=' + arguments[0] + ']');"
    script += "for (const [k, v] of Object.entries(arguments[1]))"
    script += " { f.elements[k].value = v; f.elements[k].dispatchEvent(new Event('input', {bubbles: true})) }"
    board.execute_script(script, values.pop("form", "board"), values)


@pytest.mark.slow
def test_filters_sort_and_places(board):
    put(board, file="results/tiny/flux/slow/table.csv")
    scores = [float(text) for text in cells(board, 1)]
    assert len(scores) > 8 and scores == sorted(scores, reverse=True)
    assert cells(board, 0)[0] == "hindcast-slow" and cells(board, 2)[0] == "1"
    assert any(place.endswith("=") for place in cells(board, 2))  # ties look like ties
    put(board, least="13.5", most="14.5")
    assert {round(float(text)) for text in cells(board, 3)} == {14}
    put(board, find="hindcast")
    assert cells(board, 0) == ["hindcast-slow"]
    put(
        board,
        find="",
        metric="lpips" if "lpips" in board.page_source else "ssim",
        status="withdrawn",
        file="",
        model="",
    )
    assert set(cells(board, 7)) <= {"withdrawn"}


@pytest.mark.slow
def test_the_keyboard_opens_a_row_and_sorts(board):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    button = board.find_elements(By.CSS_SELECTOR, ".sb-rows tbody th button")[0]
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    words = board.find_element(By.CSS_SELECTOR, ".sb-detail").text
    assert "bash scripts/tiny_table.sh tiny-flux" in words and "hindcast-slow" in words
    assert (
        board.find_element(By.CSS_SELECTOR, ".sb-detail a").get_attribute("href").endswith("tiny/flux/slow/table.csv")
    )
    button.send_keys(Keys.ENTER)
    assert not board.find_elements(By.CSS_SELECTOR, ".sb-detail")
    head = board.find_elements(By.CSS_SELECTOR, ".sb-rows thead th")[0]
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "ascending" and cells(board, 0) == sorted(cells(board, 0))


@pytest.mark.slow
def test_the_plot_has_every_shown_row_with_its_interval(board):
    put(board, file="results/tiny/flux/slow/table.csv")
    counts = "return ['.sb-dot', '.sb-bar', 'svg'].map(s => document.querySelectorAll('.sb-plots ' + s).length)"
    rows = len(cells(board, 0))
    assert board.execute_script(counts) == [rows, rows, 1]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
def test_only_the_tables_scroll_sideways(board, width):
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    board.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert board.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_which_method_says_no_what_fits_and_what_is_not_known(board):
    def answer(**values: str) -> str:
        put(board, form="which", **values)
        return board.execute_script("return document.querySelector('.sb-answer').innerText")

    small = answer(model="wan14b", card="24", speed="2")
    assert (
        small.startswith("No. wan14b does not fit 24 GB") and "wan1-3b" in small.split("What the data cannot tell")[0]
    )
    large = answer(card="80")
    assert "methods fit 80 GB and can reach 2×" in large and "as printed" in large and "tiny-wan" in large
    assert "No quality of real weights was measured here" in large
    assert "No counted method" in answer(card="80", speed="60")
    assert "Give a card" in answer(card="")
