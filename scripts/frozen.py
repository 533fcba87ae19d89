"""Gates as they decide beside their frozen schedules: python scripts/frozen.py <folder of runs> <reference> <out>
[metric]; frozen.sh makes the runs, <name>, <name>-frozen and <name>-consensus."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from spectrum_bench.commands import ending  # noqa: E402
from spectrum_bench.reporting import frozen  # noqa: E402
from spectrum_bench.reporting.folder import replace_folder  # noqa: E402
from spectrum_bench.scoring.experiments import find_experiments, read_experiment  # noqa: E402


def main(words: list[str]) -> None:
    folder, reference, out, metric = [*words[:3], *(words[3:4] or ["psnr"])]
    runs = [read_experiment(path) for path in find_experiments([Path(folder)])]
    files = frozen.files(frozen.pairs(runs, read_experiment(Path(reference)), metric), metric)
    replace_folder(Path(out), files)
    print(files["frozen.md"].decode())


if __name__ == "__main__":
    ending.run(main)
