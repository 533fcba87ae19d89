"""Hooks of mkdocs.yml. The site shows docs/, and every page or table of the repository that its pages link to, so that
the links of the Markdown files lead to the same places as in a checkout. Needs mkdocs alone."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
BOARD = ROOT / ".site/leaderboard.html"  # made by scripts/site.sh
PAGES = {"README.md": "index.md", "docs/notebook.ipynb": "notebook.md"}  # under other names
MARK = re.compile(r'<div data-part="(\w+)"></div>')
ALWAYS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/WITHDRAWN.md")
SHOWN = (".md", ".ipynb", ".csv", ".svg", ".jsonl", ".yaml")  # other files are linked in the repository
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```|^(?:    |\t).*?$|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what docs/ links to, and what that links to, as a page or as a file."""
    docs = [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    results = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("results/**/README.md"))]
    for path in reachable([*docs, *ALWAYS, *results, *tables_of_the_board()]):
        if not path.startswith("docs/"):
            beside = {"abs_src_path": str(ROOT / path), "inclusion": InclusionLevel.NOT_IN_NAV}
            files.append(File.generated(config, place(path), **beside))
    files.append(File.generated(config, "notebook.md", content=notebook()))
    return files


def notebook() -> str:
    """docs/notebook.ipynb as a page, with what its cells printed and drew."""
    parts = []
    for cell in json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append("```text\n" + "".join(output["text"]).rstrip() + "\n```")
            elif picture := output["data"].get("image/png"):
                parts.append(f"![what the cell draws](data:image/png;base64,{picture})")
    title, _, rest = parts[0].partition("\n\n")
    lead = "[The notebook](notebook.ipynb), as `python scripts/run_notebook.py` ran it."
    return "\n\n".join([title, lead, rest, *parts[1:]])


def reachable(paths: Iterable[str]) -> list[str]:
    """These files of the repository, and those that they link to, and so on."""
    seen: dict[str, None] = {}
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen[path] = None
        if path.endswith(".md"):
            text = CODE.sub("", (ROOT / path).read_text(encoding="utf-8"))
            waiting += filter(None, (shown(path, target) for target in LINK.findall(text)))
    return list(seen)


def shown(page: str, target: str) -> str | None:
    """The file that the site shows for a link of a page, by its path in the repository; None if it shows none."""
    if re.match(r"[a-z]+:|#|//", target):
        return None
    path = (ROOT / page).parent / unquote(target.partition("#")[0])
    if path.is_dir():
        path = next((path / name for name in ("README.md", "table.md") if (path / name).is_file()), path)
    path = Path(os.path.normpath(path))
    if not (path.is_file() and path.is_relative_to(ROOT)):
        return None
    return path.relative_to(ROOT).as_posix() if path.suffix in SHOWN or path.name in ("LICENSE", "NOTICE") else None


def place(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else path + ("" if "." in path else ".txt")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where the site has what they name, and to code in the repository if its address is known."""
    source = Path(page.file.abs_src_path or "")
    home = source.relative_to(ROOT).as_posix() if source.is_relative_to(ROOT) else page.file.src_uri
    if home.startswith("results/") and Path(home).name not in ("README.md", "WITHDRAWN.md"):  # a table has no title
        page.meta |= {"title": home.removeprefix("results/").removesuffix(".md"), "search": {"exclude": True}}
        page.meta["hide"] = ["navigation", "toc"]
        markdown = markdown if markdown.startswith("# ") else f"# {page.meta['title']}\n\n{markdown}"
    parts = CODE.split(markdown)
    for i in range(0, len(parts), 2):  # between pieces of code, which stay as they are
        parts[i] = LINK.sub(lambda match: f"]({moved(home, page, match[1], config)})", parts[i])
    return re.sub(r"\[([^\[\]]*)\]\(nowhere\)", r"\1", "".join(parts))  # a text may hold code


def moved(home: str, page: Page, target: str, config: MkDocsConfig) -> str:
    if re.match(r"[a-z]+:|#|//", target):
        return target
    path, heading = shown(home, target), target.partition("#")[2]
    if path is not None:
        relative = os.path.relpath(place(path), Path(page.file.src_uri).parent).replace(os.sep, "/")
        return relative + (f"#{heading}" if heading else "")
    inside = os.path.normpath(Path(home).parent / target.partition("#")[0])
    if (ROOT / "docs" / inside.removeprefix("docs/")).is_file() or not (ROOT / inside).exists():
        return target  # mkdocs says what is wrong with it
    return f"{config.repo_url.rstrip('/')}/blob/main/{inside}" if config.repo_url else "nowhere"


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put a part of the leaderboard where a page has its mark, <div data-part="board"></div>."""
    code = part("code").replace('"base":"../"', '"base":""', 1)  # the site has results/ beside the page
    return MARK.sub(lambda match: part("style") + part(match[1]) + code, html)


def part(name: str) -> str:
    """What stands between <!-- name --> and <!-- /name --> on the leaderboard's page."""
    return board().partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]


def tables_of_the_board() -> list[str]:
    """The CSV files that rows of the leaderboard link to."""
    return sorted(set(re.findall(r"results/[\w./-]+\.csv", part("code"))))


def board() -> str:
    """The leaderboard's page."""
    if not BOARD.is_file():
        raise PluginError(f"no {BOARD.relative_to(ROOT)}: bash scripts/site.sh makes it first")
    return BOARD.read_text(encoding="utf-8")
