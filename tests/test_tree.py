"""What git holds: small files alone, and nothing that a command makes again."""

import csv
import hashlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST = 50 * 2**20  # bytes; machines that are lent for a measurement take 64 MiB
LARGE = 500_000  # bytes of a file outside assets/ that would deserve a second thought


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what git holds cannot be asked")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_the_tree_is_light(tracked):
    assert sum(path.lstat().st_size for path in tracked) < MOST


def test_no_weights_are_stored_twice(tracked):
    """Miniatures that share a part link to it."""
    names: dict[str, list[str]] = {}
    for path in tracked:
        if path.suffix == ".safetensors" and not path.is_symlink():
            names.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(str(path.relative_to(ROOT)))
    assert not [same for same in names.values() if len(same) > 1]


def test_large_files_are_weights(tracked):
    large = [path for path in tracked if path.stat().st_size > LARGE and ROOT / "assets" not in path.parents]
    assert not large


def test_generated_pages_stay_out(tracked):
    made = [p for p in tracked if ROOT / "results" in p.parents and p.suffix in (".html", ".png", ".tex")]
    assert not made


def test_rows_that_are_withdrawn_are_marked_in_every_file(tracked):
    listed = (ROOT / "results/WITHDRAWN.md").read_text(encoding="utf-8")
    for path in tracked:
        if ROOT / "results" not in path.parents or path.name not in ("table.csv", "differences.csv"):
            continue
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        withdrawn = {row.get("algo") or row.get("method") for row in rows if row.get("withdrawn")}
        text = path.with_suffix(".md").read_text(encoding="utf-8") if path.with_suffix(".md").is_file() else ""
        assert all(f"~~{name}~~ (withdrawn)" in text and f"`{name}`" in listed for name in withdrawn)
        assert text.count("(withdrawn)") == 0 or withdrawn


@pytest.mark.parametrize("page", ["docs/guided-tour.md", "docs/extend.md", "CONTRIBUTING.md"])
def test_modules_that_a_page_names_exist(page):
    package = ROOT / "src/spectrum_bench"
    folders = (ROOT, package, package / "caching", package / "lab")  # the map of the folders names files within one
    examples = {"my_methods.py", "record.py", "metrics/brightness.py", "isolated/score_letters.py"}
    named = set(re.findall(r"[\w/]+\.py\b", (ROOT / page).read_text(encoding="utf-8")))
    lost = {name for name in named if not any((folder / name).is_file() for folder in folders)}
    assert not {name for name in lost if not name.endswith(tuple(examples))}


def test_the_tour_names_every_folder_and_module_at_the_top():
    package, text = ROOT / "src/spectrum_bench", (ROOT / "docs/guided-tour.md").read_text(encoding="utf-8")
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    drawn = text.partition("```")[2].partition("```")[0]
    assert len(folders) > 5 and {name for name in folders | modules if name not in drawn} == set()


def pinned(path: str) -> dict[str, str]:
    """Package -> version of a requirements or lock file."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\;]+)", (ROOT / path).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize(
    "lock, sources",
    [
        ("requirements.lock", ["requirements.txt"]),
        ("tests/requirements.lock", ["requirements.txt", "tests/requirements.txt"]),
        ("docs/requirements.lock", ["docs/requirements.txt"]),
    ],
)
def test_locks_are_those_of_the_requirements(lock, sources):
    """With a hash for each package, from no index but PyPI; `bash scripts/lock.sh` makes them again."""
    wanted = {name: version for source in sources for name, version in pinned(source).items()}
    locked, text = pinned(lock), (ROOT / lock).read_text()
    assert wanted.items() <= locked.items()
    assert "://" not in text and "--index" not in text
    packages = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert len(packages) == len(locked) and all("--hash=sha256:" in package for package in packages)
    assert pinned("requirements.lock").items() <= pinned("tests/requirements.lock").items()
