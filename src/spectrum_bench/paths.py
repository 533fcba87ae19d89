"""The paths of data: configurations, prompts, weights of the miniatures, results.

A checkout has them at its top level. An installed wheel has configurations, prompt lists, the paper's numbers and the
miniature FLUX inside the package. For the other miniatures SPECTRUM_BENCH_ASSETS names the assets/ of a checkout.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = (PACKAGE.parents[1] / "configs" / "base.yaml").is_file()
ROOT = PACKAGE.parents[1] if CHECKOUT else PACKAGE / "data"
CONFIGS = str(ROOT / "configs")
MODELS = ROOT / "configs" / "model"
CALIBRATION = ROOT / "configs" / "calibration"
PROMPTS = ROOT / "prompts"
CITED = ROOT / "results" / "paper"  # published numbers


def from_home(path: str) -> Path:
    """The path with the home folder for ~. Where HOME is unset and the system does not know the user, as in containers
    that run under a bare number, ~ stays, and nothing is found there."""
    return Path(os.path.expanduser(path))


def with_tilde(path: Path) -> str:
    """The path as a published table may show it: with ~ for the home folder."""
    home = from_home("~")
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def environment_with_package() -> dict[str, str]:
    """The environment of a child process that must find this package, installed or not."""
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *([inherited] if inherited else [])])}


def locate(path: str) -> Path:
    """The path itself if it exists, else the path below the repository's root, so that entry scripts run from anywhere.
    A path in `assets/` is also looked for below SPECTRUM_BENCH_ASSETS."""
    try:
        given = from_home(path)
        exists = given.exists()
    except (OSError, ValueError):  # a name that is too long or holds NUL
        given, exists = Path(path), False
    if exists or given.is_absolute():
        return given
    assets = os.environ.get("SPECTRUM_BENCH_ASSETS")
    if assets and given.parts[:1] == ("assets",) and not (ROOT / given).exists():
        return from_home(assets).joinpath(*given.parts[1:])
    return ROOT / given
