"""The rows of a table of all methods, its budgets side by side: python scripts/budgets.py <folder>

The folder holds 16/table.csv, 14/table.csv and so on; budgets.md is written beside them: PSNR, in brackets the share
of captions that is followed, and the passes where they are, rounded, not the column's."""

import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from spectrum_bench.commands import ending  # noqa: E402
from spectrum_bench.sampling.records import write_atomically  # noqa: E402


def main(words: list[str]) -> None:
    folder = Path(words[0])
    budgets = sorted(int(path.parent.name) for path in folder.glob("*/table.csv") if path.parent.name.isdigit())[::-1]
    tables = {budget: pd.read_csv(folder / str(budget) / "table.csv", na_values="'-") for budget in budgets}
    text = side_by_side(tables)
    write_atomically(folder / "budgets.md", text.encode())
    print(text)


def side_by_side(tables: dict[int, pd.DataFrame]) -> str:
    """A line for each row <name>-<budget>, in the order of the middle budget's PSNR."""
    cells = pd.DataFrame({f"{b} passes": column(table, b) for b, table in tables.items()})
    middle = list(tables)[len(tables) // 2]
    psnr = tables[middle].set_index("experiment")["psnr"].rename(lambda name: name.removesuffix(f"-{middle}"))
    order = sorted(cells.index, key=lambda name: -psnr.get(name, 0))
    reference = next(iter(tables.values())).query("role == 'reference'")["caption"].iloc[0]
    head = f"PSNR in dB against all steps (captions followed, {reference:.0%} by the reference).\n\n"
    return f"{head}{cells.loc[order].fillna('—').rename_axis('row').to_markdown(disable_numparse=True)}\n"


def column(table: pd.DataFrame, budget: int) -> pd.Series:
    """Row's name -> what its cell says."""
    rows = table[table["role"] == "method"].set_index("experiment").rename(lambda name: name.removesuffix(f"-{budget}"))
    passes = rows["passes"].map(lambda n: "" if round(n) == budget else f", {n:.3g} passes")
    return rows["psnr"].map("{:.1f}".format) + " (" + rows["caption"].map("{:.0%}".format) + passes + ")"


if __name__ == "__main__":
    ending.run(main)
