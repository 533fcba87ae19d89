"""Code stays small: short modules and functions, no lines written twice, no dict whose keys nobody states."""

import ast
import statistics
from collections import defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = [
    *ROOT.glob("src/**/*.py"),
    *ROOT.glob("training/*.py"),
    *ROOT.glob("scripts/**/*.py"),
    ROOT / "download.py",
]
NAMES = sorted(str(path.relative_to(ROOT)) for path in CODE)
PACKAGE = [name for name in NAMES if name.startswith("src/spectrum_bench/")]
EVERYTHING = [*CODE, *ROOT.glob("tests/*.py"), *ROOT.glob("scripts/*.sh")]
MODULE, FUNCTION, MEDIAN, REPEATED = 350, 60, 8, 10  # lines


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def functions(name: str) -> dict[str, int]:
    """Lines of every function, its signature and docstring included."""
    found = [node for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{node.name}:{node.lineno}": node.end_lineno - node.lineno + 1 for node in found}


def test_modules_are_short():
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in NAMES}
    assert not {name: lines for name, lines in lengths.items() if lines >= MODULE}


def test_functions_are_short():
    lengths = {(name, function): lines for name in NAMES for function, lines in functions(name).items()}
    assert not {function: lines for function, lines in lengths.items() if lines >= FUNCTION}


def test_most_functions_are_a_few_lines():
    assert statistics.median(lines for name in PACKAGE for lines in functions(name).values()) < MEDIAN


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines that say something: no blank ones, comments, imports or lone brackets."""
    numbered = enumerate((line.strip() for line in path.read_text(encoding="utf-8").splitlines()), 1)
    silent = ("#", "import ", "from ")
    return [(n, line) for n, line in numbered if any(map(str.isalnum, line)) and not line.startswith(silent)]


def repeats(paths: list[Path]) -> list[str]:
    """Places that share a run of REPEATED lines with an earlier place, each run named once."""
    first, again = {}, defaultdict(list)
    for path in paths:
        lines = code_lines(path)
        for start in range(len(lines) - REPEATED + 1):
            window = tuple(line for _, line in lines[start : start + REPEATED])
            place = (path.name, lines[start][0])
            if (origin := first.setdefault(window, place)) != place:
                again[origin[0], path.name, origin[1] - start].append((origin[1], place[1]))
    return [f"{a}:{runs[0][0]} ~ {b}:{runs[0][1]}" for (a, b, _), runs in again.items()]


def test_the_check_of_repeats_would_notice(tmp_path):
    lines = [f"value_{i} = {i}" for i in range(REPEATED)]
    for name, kept in {"a.py": REPEATED, "b.py": REPEATED, "c.py": REPEATED - 1}.items():
        (tmp_path / name).write_text("import os\n\n# note\n" + "\n    ".join(lines[:kept]))
    assert repeats(sorted(tmp_path.iterdir())) == ["a.py:4 ~ b.py:4"]


def test_no_lines_are_written_twice():
    assert not repeats(EVERYTHING)


def bare(annotation: ast.expr | None) -> bool:
    """Whether an annotation holds a `dict` that says nothing of keys and values."""
    if annotation is None:
        return False
    stated = {id(node.value) for node in ast.walk(annotation) if isinstance(node, ast.Subscript)}
    return any(isinstance(n, ast.Name) and n.id == "dict" and id(n) not in stated for n in ast.walk(annotation))


def public(node: ast.Module | ast.ClassDef):
    """Functions and fields that other modules may use, methods of public classes among them."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public(child)
        elif isinstance(child, ast.AnnAssign) or isinstance(child, ast.FunctionDef) and child.name[0] != "_":
            yield child


def annotations(node: ast.FunctionDef | ast.AnnAssign) -> list[ast.expr | None]:
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    given = node.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [node.returns, *(argument.annotation for argument in arguments if argument)]


def test_what_crosses_a_module_says_what_it_holds():
    crossing = [(name, node) for name in PACKAGE for node in public(tree(name))]
    assert not [f"{name}:{node.lineno}" for name, node in crossing if any(map(bare, annotations(node)))]
