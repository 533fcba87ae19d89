"""Where data lies: configurations, prompts, assets, results."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def locate(path: str) -> Path:
    """A path as it is, else below the repository's root, so that entry scripts run from anywhere."""
    given = Path(path).expanduser()
    return given if given.exists() or given.is_absolute() else ROOT / given


CONFIGS = str(ROOT / "configs")

CALIBRATION = ROOT / "configs" / "calibration"
