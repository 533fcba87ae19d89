"""Several budgets side by side: whose rows they are, in which order, and what a cell says."""

import pandas as pd

import budgets


def table(budget: int, *rows: tuple[str, float, float, float]) -> pd.DataFrame:
    """A report's table of these rows: name, passes, PSNR, share of captions."""
    found = [{"role": "reference", "experiment": "nocache", "passes": 50.0, "psnr": None, "caption": 0.8}]
    for name, passes, psnr, caption in rows:
        row = {"role": "method", "experiment": f"{name}-{budget}", "passes": passes, "psnr": psnr, "caption": caption}
        found.append(row)
    return pd.DataFrame(found)


def test_budgets_side_by_side():
    sixteen = table(16, ("a", 16.4, 30.04, 0.8), ("b", 16.6, 40, 0.755), ("c", 16, 10, 0))
    fourteen = table(14, ("b", 14, 31.26, 0.5), ("a", 14, 33.3, 1))
    ten = table(10, ("a", 10, 20, 0.25), ("c", 9.4, 21, 0.25))
    lines = budgets.side_by_side({16: sixteen, 14: fourteen, 10: ten}).splitlines()
    assert lines[0].endswith("(captions followed, 80% by the reference).")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["row", "16 passes", "14 passes", "10 passes"]
    assert cells[2:] == [
        ["a", "30.0 (80%)", "33.3 (100%)", "20.0 (25%)"],
        ["b", "40.0 (76%, 16.6 passes)", "31.3 (50%)", "—"],
        ["c", "10.0 (0%)", "—", "21.0 (25%, 9.4 passes)"],
    ]


def test_the_folders_named_by_a_number_are_read(tmp_path):
    for budget in (10, 16):
        (tmp_path / str(budget)).mkdir()
        table(budget, ("a", budget, 30, 1)).to_csv(tmp_path / str(budget) / "table.csv", index=False)
    (tmp_path / "timing").mkdir()
    (tmp_path / "timing/table.csv").write_text("role\n")
    budgets.main([str(tmp_path)])
    assert "| row | 16 passes   | 10 passes   |".replace(" ", "") in (tmp_path / "budgets.md").read_text().replace(
        " ", ""
    )
