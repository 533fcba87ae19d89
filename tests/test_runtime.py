"""How the network is run: batches, attention backends, torch.compile; what may be compared with what."""

import shutil
from functools import partial

import fabricate
import numpy as np
import pytest
import torch
import yaml
from helpers import MASK, settings
from helpers import run as run_cached
from torch._dynamo.utils import counters

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.commands import run
from spectrum_bench.errors import UserError
from spectrum_bench.reporting import tables
from spectrum_bench.sampling.identity import identity
from spectrum_bench.sampling.records import read_records
from spectrum_bench.sampling.runtime import RuntimeSettings
from spectrum_bench.sampling.worker import prepare
from spectrum_bench.scoring.evaluation import evaluate
from spectrum_bench.scoring.experiments import check_reference, read_experiment

PROMPTS = fabricate.captions(4)
PICTURES = fabricate.pictures(PROMPTS)


def sample(compose, words, name, *more):
    run.main(compose(*words, f"exp_name={name}", *more))
    experiment = read_experiment(next(w.split("=")[1] for w in words if w.startswith("output_base")) + f"/{name}")
    return np.stack([experiment.picture(r).astype(int) for r in experiment.records])


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["nocache", "spectrum"])
def test_batch_and_attention_change_rounding_alone(compose, words, algo):
    plain = sample(compose, words, "plain", f"algo={algo}")
    for i, word in enumerate(("runtime.batch_size=2", "runtime.attention=_native_math")):
        other = sample(compose, words, f"other{i}", f"algo={algo}", word)
        assert np.abs(plain - other).max() <= 2 and not np.array_equal(plain[0], plain[1])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile wants a compiler")
def test_compiled_blocks_are_skipped_all_the_same(compose, words, capfd):
    plain = sample(compose, words, "plain", "algo=spectrum")
    compiled = sample(compose, words, "compiled", "algo=spectrum", "runtime.compile=true")
    assert np.abs(plain - compiled).max() <= 2 and "recompile_limit" not in capfd.readouterr().err
    folder = read_experiment(next(w.split("=")[1] for w in words if w.startswith("output_base")) + "/compiled").folder
    assert all(r.computed_steps == [0, 1, 2, 3, 4, 6] for r in read_records(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3", "sdxl"])
def test_an_attention_that_changes_nothing_is_refused(random_pipes, name):
    """Processors of these two always call torch's own attention."""
    runtime = RuntimeSettings(attention="_native_math")
    with pytest.raises(UserError, match="attention=_native_math changes nothing"):
        prepare(random_pipes(name), runtime)


def test_old_spellings_of_compile_have_the_same_ids():
    def of(word):
        return identity(settings(f"runtime.compile={word}"))

    assert of("none") == of("false") == identity(settings()) and of("blocks") == of("true")
    assert len({str(of(word)) for word in ("none", "blocks", "full")}) == 3
    assert of("blocks")["runtime"]["compile"] is True


@pytest.mark.slow
@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize("way", ["blocks", "full"])
def test_caching_under_compile_gives_the_same_and_settles(weights, way):
    """Compiled blocks never compile again for another number of rows. A compiled denoiser may, once for each mask."""
    from spectrum_bench.sampling.models import load_pipeline

    pipe = load_pipeline(settings(f"model.repo={weights}").model, "cpu")
    taylor, more = partial(forecasters.taylor, order=2), partial(schedules.mask, steps=[0, 1, 2, 3, 4])
    plain = {mask: run_cached(pipe, "flux", LastBlock(), mask, taylor)[0] for mask in (MASK, more)}
    torch._dynamo.reset()
    counters.clear()
    {"blocks": pipe.transformer.compile_repeated_blocks, "full": pipe.transformer.compile}[way](backend="eager")
    compiled = []
    for mask in (MASK, more, MASK, more):
        assert torch.equal(run_cached(pipe, "flux", LastBlock(), mask, taylor)[0], plain[mask])
        compiled.append((counters["frames"]["total"], sum(counters["graph_break"].values())))
    assert compiled[1:] == [compiled[1]] * 3 and not counters["recompile_limit"]
    assert way == "full" or compiled[0] == compiled[1] and compiled[0][1] == 1  # the break is where a row is stored


@pytest.mark.parametrize("word,said", [
    ("runtime.batch_size=0", "runtime.batch_size must be a whole number of at least 1"),
    ("runtime.compile=maybe", "runtime.compile=maybe is none of none, blocks, full"),
    ("runtime.attention=fast", "runtime.attention=fast is none of flash"),
])  # fmt: skip
def test_nonsense_is_refused_before_a_model_is_loaded(compose, words, word, said):
    with pytest.raises(UserError, match=said):
        run.main(compose(*words, "model.repo=nowhere", word))


def make(folder, algo, nfe, sigma, **runtime):
    images = fabricate.noisy(PICTURES, sigma) if sigma else PICTURES
    path = fabricate.experiment(folder, PROMPTS, images, algo, nfe) / "config.yaml"
    runtime = {"batch_size": 1, "compile": False, "attention": None} | runtime
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"runtime": runtime}))
    return read_experiment(folder)


def test_another_runtime_is_a_noise_floor_and_never_a_method(tmp_path):
    reference = make(tmp_path / "nocache", "nocache", 50, 0)
    again = make(tmp_path / "batch", "nocache", 50, 1, batch_size=2)
    fora = make(tmp_path / "fora", "fora", 14, 9)
    list(evaluate([again, fora], reference, "psnr"))
    rows = tables.build([again, fora], reference).rows
    assert [row.role for row in rows] == ["reference", "noise floor", "method"]
    assert rows[1].costs.speedup is None and rows[1].costs.no_speedup == "a speedup needs the same runtime"
    assert rows[2].costs.speedup.mean > 1
    compiled = make(tmp_path / "compiled", "fora", 14, 9, compile=True)
    with pytest.raises(
        UserError, match="compiled was made with runtime {'compile': True} and .*nocache with as it comes"
    ):
        check_reference(compiled, reference)
