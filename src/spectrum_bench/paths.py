"""Where data lies: configurations, prompts, weights of the miniatures, results."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parents[1]
CONFIGS = str(ROOT / "configs")
CALIBRATION = ROOT / "configs" / "calibration"


def locate(path: str) -> Path:
    """A path as it is, else below the repository's root, so that entry scripts run from anywhere."""
    given = Path(path).expanduser()
    return given if given.exists() or given.is_absolute() else ROOT / given
