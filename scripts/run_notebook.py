"""Runs docs/notebook.ipynb from its first cell to its last, and writes what the cells print and draw into it:
python scripts/run_notebook.py"""

import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def run(notebook: dict[str, Any]) -> None:
    """Run the code cells of a notebook in this process, in the root of the checkout, and put their outputs into it.

    Raises:
        Exception: a cell raises it.
    """
    scope: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(ROOT):
        for number, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), 1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
            cell["execution_count"] = number
            cell["outputs"] = [text(printed.getvalue())] if printed.getvalue() else []
            cell["outputs"] += [picture(plt.figure(figure)) for figure in plt.get_fignums()]
            plt.close("all")


def text(printed: str) -> dict[str, Any]:
    """The output of a cell that prints."""
    return {"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)}


def picture(figure: Any) -> dict[str, Any]:
    """The output of a cell that draws, small enough for git."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
    code = base64.b64encode(data.getvalue()).decode()
    return {"output_type": "display_data", "metadata": {}, "data": {"image/png": code, "text/plain": ["<Figure>"]}}


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.path.insert(0, str(ROOT / "src"))
    made = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    run(made)
    NOTEBOOK.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
