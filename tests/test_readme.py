"""What the README tells people to type must work, and what the scripts type."""

import json
import re
import shlex
import shutil
import subprocess
from types import SimpleNamespace

import pandas
import pytest
import torch

import spectrum_bench
from spectrum_bench import forecasters
from spectrum_bench.commands import evaluate, report, rows, run
from spectrum_bench.commands import words as arguments
from spectrum_bench.commands.entry import check_words
from spectrum_bench.commands.main import config_of
from spectrum_bench.paths import ROOT
from spectrum_bench.reporting import paper
from spectrum_bench.sampling import records as jobs
from spectrum_bench.scoring.metrics import METRICS
from spectrum_bench.version import __version__

DOCS = ("run", "metrics", "paper-tables", "your-method", "statistics", "limits")
README = (ROOT / "README.md").read_text()
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", *(f"docs/{n}.md" for n in DOCS))}


def blocks(language: str) -> list[str]:
    return [
        block
        for page in PAGES.values()
        for block in re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    ]


COMMANDS = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
COMMANDS += [command for page in PAGES.values() for command in re.findall(r"`((?:python|bash) [^`]+)`", page)]


CONFIGURED = ("edit_image", "image_to_video", "calibrate", "tune", "budget", "trace", "replay", "search")


def check(words: list[str]) -> None:
    """Fail unless `words`, which follow `python`, name an entry script and keys and values that it knows."""
    script, *words = words
    assert (ROOT / script).is_file()
    if script in ("src/text_to_image.py", "src/text_to_video.py"):
        check_words("video" if "video" in script else "base", words)
    elif script[4:-3] in CONFIGURED:
        check_words(script[4:-3], words)
    elif script == "src/evaluate.py" and words != ["--check"]:
        arguments.parse(words, "", evaluate.OPTIONS)
    elif script == "src/report.py":
        arguments.parse(words, "", report.OPTIONS)
    elif script == "src/reproduce.py":
        assert not words or paper.read_plans(words[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_scripts_and_keys_that_exist(command):
    words = shlex.split(command)
    if words[0] in ("python", "bash"):
        assert (ROOT / words[1]).is_file()
    if words[0] == "python":
        check([word.replace("damped", "fora") for word in words[1:]])


FULL_SIZE = [f"bash scripts/full_size.sh {name}" for name in ("flux", "sdxl", "wan14b", "wan2-2-t2v", "hunyuan1-5-i2v")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "runs"),
    [
        *((command, 7) for command in FULL_SIZE),
        ("bash scripts/tiny_table.sh tiny-flux", 27),
        ("BUDGETS=slow bash scripts/tiny_table.sh tiny-hunyuan", 15),
        ("BUDGETS=10 bash scripts/methods_table.sh tiny-sdxl", 23),
        ("STEPS=28 BUDGETS=7 bash scripts/methods_table.sh tiny-flux", 52),
        ("bash scripts/hindcast.sh tiny-flux", 29),
        ("STEPS=28 PASSES='14 10 7' bash scripts/hindcast.sh tiny-sd3", 28),
        ("bash scripts/schedules.sh tiny-flux", 25),
        ("bash scripts/student.sh", 21),
        ("bash scripts/edits.sh", 7),
        ("bash scripts/demo.sh", 13),
        ("bash scripts/noise_floor.sh tiny-sd3", 5),
        ("bash scripts/reproduce.sh tiny", 0),
        ("bash scripts/sweep_methods.sh model=tiny-flux total_prompt_num=8", 2),
        ("bash scripts/sweep_spectrum.sh model=tiny-flux", 2),
    ],
)
def test_scripts_name_keys_that_exist(command, runs, tmp_path):
    """A script runs in a copy whose python notes what it is asked to do, and answers a search for a threshold."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("configs", "prompts", "tests", "requirements.txt", "requirements.lock"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stand_in = tmp_path / ".venv/bin/python"
    stand_in.write_text(
        'printf "%q " "$@" >> asked; echo >> asked\n'
        'case "$*" in "src/rows.py -"*) cat >> rows ;; esac\n'
        'case "$*" in *key=*) printf "%s\\n" "$@" | sed -n "s/^key=\\(.*\\)/\\1=0.1/p" ;;'
        " src/budget.py*) echo schedule.threshold=0.1 ;; esac\n"
    )
    stand_in.chmod(0o755)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    asked = [shlex.split(line) for line in (tmp_path / "asked").read_text().splitlines()]
    asked = [words for words in asked if words[:2] != ["-m", "pip"]]
    noted = rows.read((tmp_path / "rows").read_text()) if (tmp_path / "rows").exists() else []
    for words in asked:
        if words[:2] == ["src/rows.py", "-"]:
            for line in noted:
                check_words(config_of("run", words), [*words[2:], *line.words])
        else:
            check(words)
    assert len([words for words in asked if words[0].startswith("src/text_to")]) + len(noted) == runs


@pytest.mark.slow
def test_four_lines_of_python(random_pipe, monkeypatch, capsys):
    """As the README has them, on a small random pipeline in the place of FLUX.1-dev."""
    monkeypatch.setattr(random_pipe, "default_sample_size", 8)  # 128 makes pictures of 4096 tokens
    small = SimpleNamespace(to=lambda device: random_pipe)
    loader = SimpleNamespace(DiffusionPipeline=SimpleNamespace(from_pretrained=lambda repo, dtype: small))
    code = next(block for block in blocks("python") if "accelerate" in block)
    exec(code, {"diffusers": loader, "torch": torch, "spectrum_bench": spectrum_bench, "prompt": "a red ring"})
    assert len(code.splitlines()) == 4
    assert json.loads(capsys.readouterr().out) == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]


def test_the_algorithm_in_twenty_lines(compose, weights, tmp_path, monkeypatch):
    code, yaml = next(block for block in blocks("python") if "def damped" in block), blocks("yaml")[0]
    assert len((code + yaml).splitlines()) <= 20
    scope = {}
    exec(code, vars(forecasters), scope)  # as if it were appended to the file
    monkeypatch.setattr(forecasters, "damped", scope["damped"], raising=False)
    (tmp_path / "configs/algo").mkdir(parents=True)
    (tmp_path / "configs/algo/damped.yaml").write_text(yaml)
    (tmp_path / "prompts.txt").write_text("a red ring\n")
    words = [f"hydra.searchpath=[file://{tmp_path}/configs]", "algo=damped", "num_inference_steps=9"]
    words += [f"model.repo={weights}", f"prompt_file={tmp_path}/prompts.txt", f"output_base_path={tmp_path}"]
    run.main(compose(*words, "exp_name=x", "warmup_samples=0"))
    record = jobs.read_records(tmp_path / "x")[0]
    assert record.algo == "damped" and record.forecaster == "damped(damping=0.9)"
    assert record.nfe < 9 and record.cache_bytes == 2 * 64 * 128 * 4


def test_the_table_is_the_one_under_results():
    """Row by row: passes, speedup, PSNR with its interval, captions and cache of some row there."""
    shown = re.search(r"<!-- table -->\n(.*?)<!-- /table -->", README, re.DOTALL)[1].strip().splitlines()[2:]
    known = {_cells(row) for row in pandas.read_csv(ROOT / "results/tiny/flux/slow/table.csv").itertuples()}
    assert 5 < len(shown) <= 10
    for line in shown:
        assert tuple(cell.strip() for cell in line.split("|")[2:-1]) in known, line


def _cells(row) -> tuple[str, ...]:
    psnr = "—" if pandas.isna(row.psnr) else f"{row.psnr:.2f}"
    psnr += "" if pandas.isna(row.psnr_low) else f" [{row.psnr_low:.2f}, {row.psnr_high:.2f}]"
    passes = f"{round(row.passes, 2):g}/{row.steps}"
    return passes, f"{row.speedup:.2f}×", psnr, f"{100 * row.caption:.1f}", f"{row.cache_bytes / 1024:.0f} KiB"


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    """Files of this repository, and headings of its pages."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        path, _, heading = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_the_pages_list_every_schedule_site_and_metric():
    """But those that belong to other people's code, which comes as a whole."""
    for group in ("schedule", "site"):
        for path in (ROOT / "configs" / group).glob("*.yaml"):
            if path.stem != "observed" and not path.stem.startswith(("diffusers_", "cachedit_")):
                assert f"`{path.stem}`" in PAGES["docs/run.md"], f"docs/run.md does not list {group}={path.stem}"
    for name in METRICS:
        assert f"`{name}`" in PAGES["docs/metrics.md"], f"docs/metrics.md does not list {name}"


def test_every_goal_has_a_state_and_names_what_shows_it():
    goals = PAGES["docs/limits.md"].partition("## Load")[0]
    rows = [line.strip("| ").split(" | ") for line in goals.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[1] != "state"]
    assert len(rows) > 60 and {len(row) for row in rows} == {3}
    assert {state for _, state, _ in rows} == {"met", "partly", "not met", "not measurable here"}
    shown = re.compile(r"`(?:python|bash) |`tests/|\]\(|on the H100")
    assert not [goal for goal, state, text in rows if state == "met" and not shown.search(text)]
    for name in re.findall(r"tests/[\w*]+\.py", goals):
        assert list(ROOT.glob(name)), f"there is no {name}"


def test_changelog_and_citation_name_the_version():
    """A section for what comes next stands above the newest version's."""
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "[Unreleased]" and re.fullmatch(rf"{re.escape(__version__)} - 20\d\d-\d\d-\d\d", sections[1])
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
