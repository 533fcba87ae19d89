"""Imports run one way; nothing below run.py knows Hydra; numbers need no torch."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
OURS = SRC / "spectrum_bench"
LAYERS = [  # each may import from the sets before it
    {"jobs", "schedules", "forecasters", "features", "anatomy"},
    {"gates"},
    {"sites", "models"},
    {"tokens", "unet", "cache"},
    {"clusters", "peers"},
    {"generate"},
    {"engine", "calibration"},
    {"run"},
    {"budget", "tune"},
]


def imports(path: Path) -> set[str]:
    """All modules that a file imports, ours as "spectrum_bench.<name>" whichever way they are written."""
    package = ".".join(("spectrum_bench", *path.relative_to(OURS).parts[:-1])) if OURS in path.parents else ""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1] + [base] * bool(base))
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("spectrum_bench.")}


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_imports_run_one_way(level):
    names = set().union(*LAYERS)
    allowed = set().union(*LAYERS[:level])
    for name in LAYERS[level]:
        above = (ours(OURS / f"{name}.py") & names) - allowed - {name}
        assert not above, f"{name}.py imports {above}"


def test_numbers_need_numpy_alone():
    for name in ("schedules", "forecasters"):
        outside = {i.split(".")[0] for i in imports(OURS / f"{name}.py")}
        assert outside <= {"collections", "functools", "inspect", "math", "numpy"}, outside


def test_hydra_ends_at_run():
    allowed = {OURS / f"{name}.py" for name in ("run", "cli", "calibration", "budget", "tune")}
    for path in OURS.rglob("*.py"):
        heavy = {i.split(".")[0] for i in imports(path)} & {"hydra", "omegaconf"}
        assert path in allowed or not heavy, f"{path.name} imports {heavy}"


def test_one_file_reads_the_block_registry():
    users = [p.name for p in OURS.rglob("*.py") if any(i.startswith("diffusers.hooks") for i in imports(p))]
    assert users == ["anatomy.py"]


def test_scoring_and_tables_know_only_jobs_of_the_running_side():
    running = set().union(*LAYERS) - {"jobs"}
    for path in [
        *(OURS / "metrics").glob("*.py"),
        *(
            OURS / f"{n}.py"
            for n in ("experiments", "evaluation", "stats", "tables", "comparisons", "formats", "plots", "report")
        ),
    ]:
        assert not ours(path) & running, path.name


def test_nothing_unpickles_or_runs_remote_code():
    for path in SRC.rglob("*.py"):
        text = path.read_text()
        assert "trust_remote_code" not in text and "import pickle" not in text, path.name
        assert text.count("torch.load(") == text.count("weights_only=True"), path.name
