"""Sweeps through the launchers and sweepers that people on clusters use. Slurm's own is in test_slurm.py."""

import pytest
import yaml
from fabricate import run_python, run_script
from helpers import settings

from spectrum_bench.commands import entry, run, tune
from spectrum_bench.commands.entry import check_words
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.records import read_records
from spectrum_bench.scoring.experiments import pairs, read_experiment
from spectrum_bench.scoring.metrics.pixel import psnr

pytestmark = pytest.mark.slow


def sweep(script: str, *words):
    return run_script(script, "-m", *words)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_through_a_launcher(words, tmp_path, launcher):
    given = [w for w in words if "exp_name" not in w]
    plugin = launcher.split("_")[0]
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason=f"pip install hydra-{plugin}-launcher==1.2.0")
    command = ["src/text_to_image.py", "-m", "algo=reuse,nocache", f"hydra/launcher={launcher}", *given]
    done = run_python(*command)  # launchers start processes in their own ways, which a fork might disturb
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("reuse", "nocache"):
        records = read_records(tmp_path / f"out/tiny-flux_{name}")
        assert [r.prompt for r in records] == ["a red ring", "a blue star"]


def test_a_run_that_fails_does_not_end_a_sweep(words, tmp_path):
    """The second method does not fit the model: one line, exit code 1, and the others are there."""
    given = [w for w in words if "exp_name" not in w]
    done = sweep("text_to_image.py", "algo=reuse,deepcache,nocache", *given)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: FluxTransformer2DModel is no U-Net: use site=last_block or tail_residual"
    ]
    for name in ("reuse", "nocache"):
        assert len(read_records(tmp_path / f"out/tiny-flux_{name}")) == 2
    done = sweep("text_to_image.py", "algo=reuse,nocahce", *given)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "did you mean nocache?" in done.stderr


def test_a_search_keeps_to_its_budget(words, tmp_path):
    """A gap that grows slowly takes more passes; the best trial is one that takes no more than it may."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install hydra-optuna-sweeper==1.3.0")
    given = [w for w in words if "exp_name" not in w]
    command = ["passes=6", "algo.w=interval(0,1)", "warmup_steps=range(2,7)", "hydra.sweeper.n_trials=6"]
    done = sweep("tune.py", "hydra/sweeper=tune", *command, *given)
    assert done.returncode == 0, done.stderr[-2000:]
    trials = [line for line in done.stdout.splitlines() if " dB" in line]
    found = yaml.safe_load((tmp_path / "out/optimization_results.yaml").read_text())
    allowed = [float(line.split(" passes, ")[1].split()[0]) for line in trials if "too many" not in line]
    assert len(trials) == 6 and any("too many" in line for line in trials)
    assert found["best_value"] == pytest.approx(max(allowed), abs=0.01)
    assert set(found["best_params"]) == {"algo.w", "warmup_steps"}


def test_a_trial_is_worth_what_a_run_scores(compose, words, tmp_path):
    value = tune.main(compose(*words, "algo=spectrum", "passes=8", config_name="tune"))
    for name in ("nocache", "spectrum"):
        run.main(compose(*[w for w in words if "exp_name" not in w], f"algo={name}", f"exp_name={name}"))
    experiment, reference = (read_experiment(tmp_path / "out" / name) for name in ("spectrum", "nocache"))
    scores = [psnr(experiment.picture(a), reference.picture(b)) for a, b in pairs(experiment, reference)]
    assert len(scores) == 2 and value == pytest.approx(sum(scores) / 2, rel=1e-6)
    taken = experiment.records[0].nfe
    assert tune.main(compose(*words, "algo=spectrum", f"passes={taken - 2}", config_name="tune")) == -2
    with pytest.raises(UserError, match="passes must be a number of at least 1, not 0"):
        tune.main(compose(*words, "passes=0", config_name="tune"))


def test_words_of_a_sweep_are_checked(capsys):
    check_words("base", ["-m", "algo=fora,spectrum", "seed=range(0,3)", "algo.w=interval(0,1)", "schedule=glob(*)"])
    with pytest.raises(SystemExit):
        check_words("base", ["-m", "algo=choice(foar,spectrum)"])
    assert "did you mean fora?" in capsys.readouterr().err


def test_runs_of_a_sweep_are_named_apart():
    words = ["-m", "algo=spectrum", "algo.w=0.5,1", "window_size=2,3", "seed=1"]
    assert entry.name_apart(words) == ["-m", "exp_name=${swept:algo.w,window_size}", *words[1:]]
    assert entry.name_apart([*words[1:], "-m"])[0] == "exp_name=${swept:algo.w,window_size}"
    for plain in (["-m", "algo=fora,spectrum", "model=tiny-flux"], [*words, "exp_name=x"], words[1:2]):
        assert entry.name_apart(plain) == plain


def test_the_name_of_a_run_of_a_sweep():
    name = lambda *words: settings(*words).exp_name  # noqa: E731
    word = "exp_name=${swept:algo.w,window_size}"
    assert name("algo.w=0.5", "window_size=3", word) == "tiny-flux_spectrum_algo.w=0.5,window_size=3"
    assert name("algo=reuse", "schedule=mask", "schedule.steps=[0,3]", "exp_name=${swept:schedule,schedule.steps}") == (
        "tiny-flux_reuse_schedule=mask,schedule.steps=-0,-3-"
    )
    long = "exp_name=${swept:algo.w,window_size,flex_window,algo.lam,algo.m,warmup_steps}"
    assert len(name(long)) <= 80 and name(long) != name(long, "algo.w=0.5")


def test_a_sweep_over_values_makes_a_folder_each(words):
    """As one types it; one folder for all was refused from the second run on."""
    given = [w for w in words if "exp_name" not in w and "num_inference" not in w]
    done = sweep("text_to_image.py", *given, "num_inference_steps=2", "total_prompt_num=1", "algo.w=0.5,1")
    assert done.returncode == 0, done.stderr
    out = next(word.partition("=")[2] for word in words if word.startswith("output_base_path"))
    assert len(read_records(f"{out}/tiny-flux_spectrum_algo.w=0.5")) == 1
    assert len(read_records(f"{out}/tiny-flux_spectrum_algo.w=1")) == 1
