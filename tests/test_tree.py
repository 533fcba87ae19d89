"""What git holds: small files alone, and nothing that a command makes again."""

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
    assert sum(path.stat().st_size for path in tracked) < MOST


def test_large_files_are_weights(tracked):
    large = [path for path in tracked if path.stat().st_size > LARGE and ROOT / "assets" not in path.parents]
    assert not large


def test_generated_pages_stay_out(tracked):
    made = [p for p in tracked if ROOT / "results" in p.parents and p.suffix in (".html", ".png", ".tex")]
    assert not made
