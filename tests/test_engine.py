"""Workers, failures and the ownership of a directory. Ray is the real one."""

import json
import subprocess
import sys
from pathlib import Path

import fabricate
import numpy as np
import pytest
import torch
from helpers import finish, start

from spectrum_bench.commands import run
from spectrum_bench.errors import UserError
from spectrum_bench.sampling import pool
from spectrum_bench.sampling import records as jobs
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.records import Failure
from spectrum_bench.sampling.sampler import Sampler
from spectrum_bench.sampling.worker import of_the_sample
from spectrum_bench.scoring.experiments import read_experiment

PROMPTS = [f"a red ring number {i}" for i in range(6)]


def pictures(folder: Path) -> list[np.ndarray]:
    experiment = read_experiment(folder)
    return [experiment.picture(record) for record in experiment.records]


@pytest.mark.slow
def test_two_workers_make_what_one_makes(compose, more_words, tmp_path, capsys):
    """Same ids, same pixels; two on one processor give no latency."""
    run.main(compose(*more_words, "exp_name=one"))
    out, _ = finish(start(*more_words, "exp_name=two", "ngpu=2"))
    assert "6 samples, 0 of them finished" in out
    one, two = (jobs.read_records(tmp_path / "out" / name) for name in ("one", "two"))
    assert [r.id for r in one] == [r.id for r in two] and [r.computed_steps for r in one] == [
        r.computed_steps for r in two
    ]
    np.testing.assert_array_equal(pictures(tmp_path / "out/one"), pictures(tmp_path / "out/two"))
    assert not any(r.alone for r in two)
    run.main(compose(*more_words, "exp_name=two", "ngpu=2"))
    assert "6 samples, 6 of them finished" in capsys.readouterr().out


@pytest.mark.slow
def test_an_algorithm_that_does_not_fit_ends_the_run_in_one_line(more_words):
    for extra in ([], ["ngpu=2"]):
        out, err = finish(start(*more_words, "algo=deepcache", *extra), 1)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert lines == ["error: FluxTransformer2DModel is no U-Net: use site=last_block or tail_residual"]
        assert "Traceback" not in err


def test_a_sample_that_fails_is_put_on_record(compose, more_words, tmp_path, monkeypatch, capsys):
    """The others are made, the exit code says so, and it is tried again when that is asked for."""
    broken = True

    make = Sampler.sample

    def flaky(self, job, observers=()):
        if broken and job.prompt_index == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(self, job, observers)

    monkeypatch.setattr(Sampler, "sample", flaky)
    with pytest.raises(SystemExit) as end:
        run.main(compose(*more_words))
    assert end.value.code == 3
    err = capsys.readouterr().err
    assert "failed: prompt 2: OutOfMemoryError: CUDA out of memory" in err
    assert "1 of 6 samples failed; retry_failed=true tries them again" in err
    folder = tmp_path / "out/x"
    assert [r.prompt_index for r in jobs.read_records(folder)] == [0, 1, 3, 4, 5]
    broken = False
    with pytest.raises(SystemExit):
        run.main(compose(*more_words))  # not tried again by itself
    assert len(jobs.read_records(folder)) == 5
    run.main(compose(*more_words, "retry_failed=true"))
    assert len(jobs.read_records(folder)) == 6 and jobs.read_failures(folder) == []


def test_a_cpu_out_of_memory_is_the_samples_own_error():
    """torch has no class for it; a device that fails is another matter."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert of_the_sample(error.value) and of_the_sample(torch.OutOfMemoryError("")) and of_the_sample(MemoryError())
    assert not of_the_sample(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.slow
def test_two_runs_never_share_a_directory(compose, more_words, tmp_path):
    with jobs.only_run(tmp_path / "out/x"):
        with pytest.raises(UserError, match="another run is at work in .*/out/x: wait for it"):
            run.main(compose(*more_words))
        other = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n"
                 f"from pathlib import Path\nfrom spectrum_bench.sampling.records import only_run\n"
                 f"with only_run(Path('{tmp_path}/out/x')): pass"]  # fmt: skip
        assert "another run is at work" in subprocess.run(other, capture_output=True, text=True).stderr
    run.main(compose(*more_words))


# ---------------------------------------------------------------------------------------------------------------------
# The pull loop against a Ray of the test's: what dies when is its choice


class Toy:
    """Just enough of Ray: calls answer at once, in order; `script` says which of them die."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            cause = OSError("No space left on device")

    def __init__(self, dies):
        self.dies, self.calls, self.hired = dies, [], 0

    def hire(self):
        self.hired += 1
        return ToyWorker(self)

    def wait(self, refs, num_returns, timeout):
        return refs[:1], refs[1:]

    def get(self, ref):
        if ref[1] is not None and self.dies(ref[1], self):
            raise self.exceptions.RayError
        if ref[1] is None:
            return None
        self.calls.append(ref[1].prompt_index)
        return Failure.of(ref[1], ValueError("a toy makes nothing")), {}


class ToyWorker:
    def __init__(self, toy):
        def call(name):
            return type("", (), {"remote": staticmethod(lambda job=None: (object(), job))})

        self.load, self.make = call("load"), call("make")


def pull(tmp_path, dies, count=2, n=5):
    toy, todo = Toy(dies), [Job(f"id{i}", i, f"prompt {i}", 0) for i in range(n)]
    return toy, list(pool._Pull(toy, todo, toy.hire, tmp_path, None, 10).outcomes(count))


def test_every_job_is_done_once(tmp_path):
    toy, out = pull(tmp_path, lambda job, toy: False)
    assert sorted(toy.calls) == [0, 1, 2, 3, 4] and len(out) == 5 and toy.hired == 2
    assert pull(tmp_path, lambda job, toy: False, count=8, n=3)[0].hired == 3  # no more workers than jobs


def test_a_job_goes_back_when_its_worker_dies(tmp_path):
    died = []

    def dies(job, toy):
        first = job.prompt_index in (1, 3) and job.prompt_index not in died
        died.extend([job.prompt_index] if first else [])
        return first

    toy, out = pull(tmp_path, dies)
    assert sorted(toy.calls) == [0, 1, 2, 3, 4] and toy.hired == 4


def test_a_prompt_that_kills_its_workers_is_set_aside(tmp_path):
    toy, out = pull(tmp_path, lambda job, toy: job.prompt_index == 2)
    assert sorted(toy.calls) == [0, 1, 3, 4] and toy.hired == 2 + pool.DEATHS
    (failure,) = [each for each in out if "toy" not in each.reason]
    assert failure.prompt == "prompt 2" and "3 workers died on it" in failure.reason
    assert json.loads((tmp_path / "failures/id2.json").read_text())["reason"] == failure.reason


def test_an_error_of_ours_is_not_a_dead_worker(tmp_path):
    def full(job, toy):
        raise toy.exceptions.RayTaskError

    with pytest.raises(UserError, match="a worker met No space left on device"):
        pull(tmp_path, full)


def test_a_remake_that_fails_is_a_failure(tmp_path):
    """A finished sample whose picture was lost: the old record goes, and the failure stays until it is made."""
    record = fabricate.experiment(tmp_path / "x", PROMPTS[:1], fabricate.pictures(PROMPTS[:1]))
    (line,) = jobs.read_records(record)
    jobs.save_record(tmp_path, line)
    job = Job(line.id, 0, line.prompt, line.seed)
    jobs.save_failure(tmp_path, Failure.of(job, MemoryError("full")))
    assert not list(tmp_path.glob("records/*")) and [f.reason for f in jobs.read_failures(tmp_path)] == [
        "MemoryError: full"
    ]
    jobs.save_record(tmp_path, line)
    assert jobs.read_failures(tmp_path) == []


def test_workers_that_only_die_end_the_run(tmp_path):
    with pytest.raises(UserError, match="workers died in a row: see .*workers.log"):
        pull(tmp_path, lambda job, toy: True, n=50)


def test_a_run_is_dirty_by_its_code_and_not_by_a_report(tmp_path):
    from spectrum_bench.sampling.sources import git_sha

    def git(*arguments):
        line = ["-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(["git", *line], check=True)

    for name in ("results", "src"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("one")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    (tmp_path / "results/a").write_text("two")
    assert len(git_sha(tmp_path)) == 12
    (tmp_path / "src/a").write_text("two")
    assert git_sha(tmp_path).endswith("-dirty")
    (tmp_path / "src/a").write_text("one")
    assert not git_sha(tmp_path).endswith("-dirty")
    (tmp_path / "src/method").write_text("in no commit")
    assert git_sha(tmp_path).endswith("-dirty")
