"""Many rows in one process: the same samples as in a process each, and one load of the model."""

import io
import sys

import pytest

from spectrum_bench.commands import rows, run
from spectrum_bench.commands.main import config_of
from spectrum_bench.errors import UserError
from spectrum_bench.sampling import worker
from spectrum_bench.sampling.records import read_records

ROWS = (
    "plain algo=nocache\n# a comment\nspec algo=spectrum algo.w=0.5  # half\nshort algo=reuse num_inference_steps=6\n"
)


@pytest.fixture
def common(words):
    """The words of every row, which names itself."""
    return [word for word in words if not word.startswith("exp_name=")]


@pytest.fixture
def loads(monkeypatch):
    """The models that were loaded."""
    loaded, load = [], worker.open_pipeline
    monkeypatch.setattr(worker, "open_pipeline", lambda settings: loaded.append(settings.model.name) or load(settings))
    return loaded


@pytest.mark.slow
def test_rows_are_what_runs_of_their_own_are_and_load_the_model_once(compose, common, loads, tmp_path):
    (tmp_path / "rows.txt").write_text(ROWS)
    rows.main([str(tmp_path / "rows.txt"), *common])
    assert loads == ["tiny-flux"]
    for name, own in (("plain", ["algo=nocache"]), ("spec", ["algo=spectrum", "algo.w=0.5"])):
        run.main(compose(*common, *own, f"exp_name={name}-alone"))
        made, alone = (read_records(tmp_path / "out" / folder) for folder in (name, f"{name}-alone"))
        assert [record.sha256 for record in made] == [record.sha256 for record in alone]
    assert read_records(tmp_path / "out/short")[0].num_inference_steps == 6
    del loads[:]
    rows.main([str(tmp_path / "rows.txt"), *common])
    assert loads == []  # all is finished


def test_a_row_that_fails_does_not_stop_the_others(common, loads, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("unfit algo=deepcache\nspec algo=spectrum\n"))
    with pytest.raises(UserError, match="unfit failed; the others are finished"):
        rows.main(["-", *common])
    assert "error: FluxTransformer2DModel is no U-Net" in capsys.readouterr().err
    assert len(read_records(tmp_path / "out/spec")) == 2 and loads == ["tiny-flux"]


@pytest.mark.slow
def test_another_runtime_is_another_pipeline(common, loads, tmp_path, monkeypatch):
    """Nothing of a row's runtime stays in the process."""
    attention = ("", "_native_math", "_native_math", "")
    lines = [f"{name} {f'runtime.attention={own}' if own else ''}" for name, own in zip("abcd", attention, strict=True)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    rows.main(["-", *common, "algo=nocache", "keep_latents=2"])
    assert loads == ["tiny-flux"] * 3
    plain, math, again, last = (
        [path.read_bytes() for path in sorted((tmp_path / "out" / name / "latents").iterdir())] for name in "abcd"
    )
    assert plain == last != math == again


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a algo=nocache\nb algo=spectru\n", r"b: there is no algo=spectru \(did you mean spectrum\?\)"),
        ("a algo=nocache\nb algo=spectrum algo.w=7\n", r"b: blend \(algo.w\) must be a number"),
        ("a algo=nocache\na algo=spectrum\n", "two rows are called a: give each a name of its own"),
        ("a algo=nocache\nb algo.nonsense\n", "b: 'algo.nonsense' is not key=value"),
        ("a algo=nocache\n../b algo=spectrum\n", "exp_name"),
        ("a 'algo=nocache\n", "line 1: No closing quotation"),
        ("a algo=nocache ++site={_target_:os.system}\n", "a: site._target_=os.system is no schedule"),
        ("# nothing\n", "there is no row"),
    ],
)
def test_a_wrong_row_is_told_before_the_first_begins(text, reason, common, loads, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(UserError, match=reason):
        rows.main(["-", *common])
    assert not (tmp_path / "out").exists() and loads == []


def test_words_that_are_no_rows(common):
    with pytest.raises(UserError, match="there is no nowhere: name a file with a row a line"):
        rows.main(["nowhere"])
    with pytest.raises(UserError, match="exp_name=x: only key=value words follow the file"):
        rows.main(["-", "exp_name=x"])


def test_a_rows_own_model_chooses_its_configuration():
    assert config_of("run", ["model=tiny-flux", "algo=reuse", "model=tiny-wan"]) == "video"
    assert config_of("run", ["model=tiny-wan", "model=tiny-flux"]) == "base"
