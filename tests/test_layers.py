"""Imports run down the layers and in no circle; Hydra ends at the command line; a refusal needs no torch."""

import ast
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGE = "spectrum_bench"
LAYERS = (  # lowest first; a part imports from itself and from layers below its own
    {"errors", "paths", "version"},
    {"checks"},
    {"schedules", "forecasters", "anatomy", "distances", "frequencies"},
    {"signals"},
    {"decisions"},
    {"gates", "spectral_gates", "feature_gates"},
    {"caching"},
    {"sampling", "miniature"},
    {"scoring"},
    {"lab", "reporting", "conformance"},
    {"commands"},
    {PACKAGE, "__main__"},  # the package's own __init__.py: the names that the library shows
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
CONFIGURATION = {"hydra", "omegaconf"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


@dataclass(frozen=True)
class Import:
    module: str  # spectrum_bench.caching.session, numpy.linalg
    line: int
    in_function: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((SRC / PACKAGE).rglob("*.py"))}


def imported(node: ast.stmt, package: str) -> list[str]:
    """The modules that an import statement names; `from package import submodule` is the submodule."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        base = ".".join([*package.split(".")[: package.count(".") + 2 - node.level], *base.split(".")]).rstrip(".")
    return [name if (name := f"{base}.{alias.name}") in FILES else base for alias in node.names]


def walk(node: ast.AST, in_function: bool = False):
    """Every import statement below `node`, with whether a function holds it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function
        yield from walk(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(
        Import(module, node.lineno, in_function)
        for node, in_function in walk(ast.parse(path.read_text()))
        for module in imported(node, package)
    )


def part(module: str) -> str:
    """The part of the package that a module is in: a folder or a file beside the folders."""
    return (module.split(".") + [PACKAGE])[1] if "." in module else PACKAGE


def ours(path: Path) -> list[Import]:
    return [each for each in imports(path) if each.module.split(".")[0] == PACKAGE]


def outside(path: Path) -> set[str]:
    return {each.module.split(".")[0] for each in imports(path)} - {PACKAGE}


@cache
def reached(start: str) -> set[str]:
    """Modules of ours that `start` imports, by whatever way."""
    known, waiting = set(), {start}
    while waiting:
        known.add(name := waiting.pop())
        waiting |= {each.module for each in ours(FILES[name])} - known
    return known


def test_every_part_has_a_layer():
    assert {part(name) for name in FILES} == RANK.keys()


def test_imports_run_down_the_layers():
    upward = [
        f"{name}, line {each.line}: {each.module}"
        for name, path in FILES.items()
        for each in ours(path)
        if part(each.module) != part(name) and RANK[part(each.module)] >= RANK[part(name)]
    ]
    assert not upward


def test_imports_name_modules_that_exist():
    missing = [
        f"{name}: {each.module}" for name, path in FILES.items() for each in ours(path) if each.module not in FILES
    ]
    assert not missing


def test_no_module_imports_itself_through_others():
    assert not [name for name, path in FILES.items() for each in ours(path) if name in reached(each.module)]


def test_hydra_ends_at_the_command_line():
    users = {name for name, path in FILES.items() if outside(path) & CONFIGURATION}
    assert {part(name) for name in users} == {"commands"}, users


@pytest.mark.parametrize("name", ["schedules", "forecasters"])
def test_numbers_need_numpy_alone(name):
    for module in reached(f"{PACKAGE}.{name}"):
        assert outside(FILES[module]) <= {*sys.stdlib_module_names, "numpy"}, module


def test_one_file_reads_the_block_registry():
    readers = {
        n for n, path in FILES.items() if any(each.module.startswith("diffusers.hooks") for each in imports(path))
    }
    assert readers == {f"{PACKAGE}.anatomy"}


def calls(tree: ast.AST, name: str) -> list[dict[str, ast.expr]]:
    """The keyword arguments of every call of `<anything>.<name>`."""
    return [
        {keyword.arg: keyword.value for keyword in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name)
    ]


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def test_nothing_unpickles_or_runs_remote_code():
    for path in [*SRC.rglob("*.py"), *ROOT.glob("training/*.py"), ROOT / "download.py"]:
        tree = ast.parse(path.read_text())
        nodes = [node for node, _ in walk(tree)]
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & PICKLES, path
        assert all(is_true(arguments.get("weights_only")) for arguments in calls(tree, "torch.load")), path
        assert not any(is_true(arguments.get("allow_pickle")) for arguments in calls(tree, "load")), path
        assert not calls(tree, "read_pickle") and "trust_remote_code" not in path.read_text(), path


# Processes that need no model: they load no torch, and only modules that they load may import inside functions.
WITHOUT_A_MODEL = [
    "text_to_image.py --help",
    "text_to_image.py --cfg job",
    "text_to_image.py algo=spectrun",
    "text_to_image.py seed=abc",
    "text_to_image.py model.repo=nobody/nothing",
    "text_to_image.py algo=nocache ++site={_target_:torch.hub.load}",
    "calibrate.py --help",
    "../download.py --help",
    "evaluate.py --help",
    "evaluate.py nowhere reference=nowhere",
    "report.py --help",
    "score.py nowhere reference=nowhere",
    "verify.py nowhere",
    "try.py algo=spectrun",
    "conformance.py pipeline=random:nothing cache=diffusers:SeaCacheConfig(threshold=1)",
    "reproduce.py nothing",
    "budget.py --help",
    "cost.py --help",
    "tune.py --help",
    "trace.py --help",
    "search.py --help",
    "replay.py trace=/nowhere/t",
    "rows.py nowhere",
    "-m spectrum_bench list algos",
]
# May be missing, and are asked for only where they are used.
EXTRAS = {"ray", "cache_dit", "lpips", "open_clip", "ImageReward", "cleanfid", "pyiqa", "vbench"}

TELL = """
import atexit, os, runpy, sys
from pathlib import Path
atexit.register(lambda: Path(os.environ["TELL"]).write_text("\\n".join(sys.modules)))
script, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, os.getcwd())
run, script = (runpy.run_module, sys.argv.pop(1)) if script == "-m" else (runpy.run_path, script)
run(script, run_name="__main__")
"""


def loaded(command: str) -> set[str]:
    """The modules that a process of an entry script has imported by its end."""
    with tempfile.NamedTemporaryFile("r") as file:
        line = [sys.executable, "-c", TELL, *command.split()]
        subprocess.run(line, capture_output=True, timeout=120, cwd=SRC, env={**os.environ, "TELL": file.name})
        return set(file.read().split())


@pytest.mark.slow
def test_what_needs_no_model_imports_no_torch():
    """A function may import, so that `--help` and a refusal come without torch; anywhere else imports stand on top."""
    early = {command: loaded(command) for command in WITHOUT_A_MODEL}
    assert [command for command, names in early.items() if PACKAGE not in names or "torch" in names] == []
    late = {name: [each for each in imports(tree) if each.in_function] for name, tree in FILES.items()}
    late = {name: [each for each in found if each.module.split(".")[0] not in EXTRAS] for name, found in late.items()}
    assert {name for name, found in late.items() if found} <= set().union(*early.values())
