"""The table of a student's rows: paired differences of captions from the student, and its model."""

import fabricate
import pandas as pd
import pytest

import student_table


def test_captions_are_compared_with_the_students(tmp_path, monkeypatch, capsys):
    prompts = fabricate.captions(8)
    pictures = fabricate.pictures(prompts)
    student = {"name": "student", "teacher": "tiny-flux"}
    rows = {"nocache": (50, None), "student-4": (4, student), "steps-4": (4, None), "hindcast-7": (7, None)}
    for name, (passes, model) in rows.items():
        steps = 4 if passes == 4 else 50
        fabricate.experiment(tmp_path / name, prompts, pictures, name, passes, steps, model=model)
    followed = {"student-4": [1] * 8, "steps-4": [1, 1, 0, 0, 0, 0, 0, 0], "hindcast-7": [1] * 7 + [0]}

    def scores(run, reference):
        return pd.DataFrame({"caption": followed[run.folder.name], "psnr": 30.0, "ssim": 0.9}, dtype=float), None

    monkeypatch.setattr(student_table, "load", scores)
    student_table.main([str(tmp_path / "rows.csv"), str(tmp_path)])
    table = pd.read_csv(tmp_path / "rows.csv").set_index("row")
    assert list(table.index) == ["hindcast-7", "steps-4", "student-4"]
    assert table.caption_less_student.to_dict() == {"hindcast-7": -0.125, "steps-4": -0.75, "student-4": 0}
    assert table.model["student-4"] == "student" and table.model["steps-4"] == "tiny-flux"
    assert table.passes["steps-4"] == table.steps["steps-4"] == 4 and table.steps["hindcast-7"] == 50
    assert table.p_holm["steps-4"] == pytest.approx(2 * 2 / 2**6, abs=0.01)  # two rows; six signs, two choices as far
    assert table.p_holm["hindcast-7"] == 1 and "student-4" in capsys.readouterr().out
