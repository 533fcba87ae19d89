"""The matrix of a full cross of scored runs named <row>--<column>, and what explains it:
python scripts/cross.py <folder of runs> <reference> <out> [metric] [row's factor] [column's factor]; see cross.sh"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from spectrum_bench.commands import ending  # noqa: E402
from spectrum_bench.reporting import cross  # noqa: E402
from spectrum_bench.reporting.folder import replace_folder  # noqa: E402
from spectrum_bench.scoring.experiments import find_experiments, read_experiment  # noqa: E402


def main(words: list[str]) -> None:
    folder, reference, out, metric, *names = [*words[:3], *(words[3:] or ["psnr"])]
    runs = [read_experiment(path) for path in find_experiments([Path(folder)]) if cross.BETWEEN in path.name]
    what = (*names, "schedule", "forecaster")[:2] if len(names) == 2 else ("schedule", "forecaster")
    result = cross.read(runs, read_experiment(Path(reference)), metric)
    files = cross.files(result, what)
    replace_folder(Path(out), files)
    print(files["cross.md"].decode())


if __name__ == "__main__":
    ending.run(main)
