"""Configurations composed by Hydra."""

import json

from spectrum_bench.paths import CALIBRATION


def calibrated(method: str, key: str, default=None, *, _root_):
    """${calibrated:<method>,<key>}: what the composed model was measured for, or the default."""
    path = CALIBRATION / method / f"{_root_.model.name}.json"
    return json.loads(path.read_text(encoding="utf-8")).get(key, default) if path.exists() else default
