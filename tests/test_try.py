"""A method beside others with as many passes, in one command."""

import pytest
from fabricate import run_script

from spectrum_bench.commands import try_
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.records import read_records


@pytest.mark.slow
def test_a_method_is_scored_beside_others_with_as_many_passes(tmp_path):
    words = ["algo=fbcache", "schedule.threshold=0.2", "num_inference_steps=9", "total_prompt_num=2", "device=cpu"]
    done = run_script("try.py", *words, "warmup_samples=0", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    taken = [record.nfe for record in read_records(tmp_path / "fbcache")]
    passes = round(sum(taken) / 2)
    assert 1 < passes < 9
    names = ("steps", "reuse-even", "taylor1-even", "spectrum-even", "hindsight")
    for name in names:
        assert [record.nfe for record in read_records(tmp_path / name)] == [passes] * 2
    for name in ("reference", "fbcache", "Tables, plot and page: "):
        assert name in done.stdout
    assert (tmp_path / "report/index.html").is_file() and (tmp_path / "report/differences.md").is_file()


@pytest.mark.parametrize("words", [["model=tiny-flux"], ["algo=nocache"], ["algo="]])
def test_a_method_must_be_named(words):
    with pytest.raises(UserError, match="name the method to try: algo=<name>"):
        try_.main(words)


def test_keys_of_a_method_are_told_from_those_of_all_runs():
    keys = [try_.key_of(word) for word in ("+algo.x=1", "schedule.passes=3", "site=stack_residual", "flex_window=3")]
    assert set(keys) <= set(try_.OF_A_METHOD)
    assert not {try_.key_of(word) for word in ("seed=1", "model.width=96", "plugins=[x]")} & set(try_.OF_A_METHOD)
