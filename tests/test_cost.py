"""The cost that is told before weights are loaded, against published figures, a GPU's and real runs of miniatures."""

import json
from dataclasses import replace
from types import SimpleNamespace

import golden
import pytest
import torch
from bench.skipped_steps import COMPUTED, skipped_step
from helpers import composed, first_of_its_site, paired, settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spectrum_bench.commands import cost as command
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling import run as main_loop
from spectrum_bench.sampling import shapes
from spectrum_bench.sampling.cost import Cost, check_memory, lines, operations, read_cost, size, write_cost
from spectrum_bench.sampling.counting import count
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.prompts import Prompt, Prompts
from spectrum_bench.sampling.sampler import Observer, Sampler
from spectrum_bench.sampling.shapes import Counted

JOB = Job("one", 0, "a large red ring on a gray background", 0)
KIB = Cost(full_step=1000, skipped_steps=[10, 1], cache_bytes=2048, weights_bytes=8192, working_bytes=1024)


def cost_of(*words):
    given = settings(*words)
    return count(given, build(given), JOB)


def measured(section, method):
    """The newest figures of a method on an H200."""
    rows = (ROOT / "results/h200/after/gpu_truth.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, rows) if (row["section"], row.get("method")) == (section, method)]
    return found[-1]


@pytest.mark.slow
def test_flux_is_the_published_count_and_the_measured_memory():
    cost = cost_of("model=flux", "algo=spectrum")
    assert cost.full_step == pytest.approx(3719.50e12 / 50, rel=1e-4)  # TaylorSeer (arXiv:2503.06923), Table 1
    assert cost.weights_bytes == pytest.approx(33.74e9, rel=1e-3)  # 16.87 B parameters in bfloat16
    on_gpu, plain = measured("flux", "spectrum-14"), measured("flux", "nocache")
    assert cost.cache_bytes / 1e9 == pytest.approx(on_gpu["cache_gb"], rel=1e-4)
    beside = plain["peak_gb"] - measured("flux", "build")["memory_gb"]
    assert cost.working_bytes / 1e9 == pytest.approx(beside, rel=0.01)


@pytest.mark.slow
def test_modules_of_wan_do_not_fit_a_card():
    cost = cost_of("model=wan14b", "algo=taylorseer")
    assert cost.cache_bytes == 40 * 3 * 2 * 2 * (21 * 30 * 52 * 5120) * 2  # blocks, modules, rows, branches, bf16
    assert cost.cache_bytes / 1e9 == pytest.approx(161, abs=0.1)
    with pytest.raises(UserError, match=r"site=last_block"):
        check_memory(cost, 80 * 10**9, "the card")


def foretold(model, algo, *more):
    given = golden.chosen(model, algo, *more)
    return count(given, build(given), JOB).cache_bytes


def test_the_outputs_that_correct_a_latent_count_as_cache():
    _, figures = golden.sample("tiny-flux", "reuse", "correct=hindsight")
    assert foretold("tiny-flux", "reuse", "correct=hindsight") == figures.cache_bytes


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_sample_may_have_few_steps(steps):
    given = settings("model=tiny-flux", "algo=reuse", f"num_inference_steps={steps}")
    cost, usual = count(given, build(given), JOB), cost_of("model=tiny-flux", "algo=reuse")
    assert (cost.full_step, cost.cache_bytes) == (usual.full_step, usual.cache_bytes)


def held(model):
    """Algorithm -> bytes that a sample's cache held."""
    return {algo: line["cache_bytes"] for algo, line in golden.read(model).items() if "refused" not in line}


MODELS = ("tiny-flux", "tiny-wan", "tiny-sdxl")
PEERS = ("cachedit_", "diffusers_")  # hold what they like
OURS = sorted(algo for algo in {algo for model in MODELS for algo in held(model)} if not algo.startswith(PEERS))


@pytest.mark.slow
@pytest.mark.parametrize("algo", first_of_its_site(OURS) + ["spectrum", "taylorseer", "hindcast"])
def test_the_cache_is_as_large_as_foretold(algo):
    """Of each site one algorithm with one network call a step and with two; what fits neither, in the U-Net."""
    first_two = [model for model in MODELS if algo in held(model)][:2]
    assert {model: foretold(model, algo) for model in first_two} == {model: held(model)[algo] for model in first_two}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, algo",
    [("tiny-flux", "taylorseer"), ("tiny-sdxl", "teacache"), ("tiny-wan", "spectrum"), ("flux2-klein", "fbcache")],
)
def test_shapes_that_were_found_before_are_found_again(model, algo, monkeypatch):
    """Linear layers without a bias, as FLUX.2's, give views."""
    given = paired(model, algo)
    first, known = (count(given, build(given), JOB) for _ in range(2))
    monkeypatch.setattr(shapes, "_makes_new", lambda func: False)  # then no outcome is looked up or kept
    assert count(given, build(given), JOB) == first == known


class Computed(Observer):
    def step_done(self, session, step, latents):
        self.steps = session.computed_steps


@pytest.mark.slow
@pytest.mark.parametrize("algo,off", [("spectrum", 0), ("duca", 0), ("clusca", 0.01)])  # k-means may end early
def test_the_operations_are_those_of_a_real_sample(algo, off):
    given = settings("model=tiny-flux", f"algo={algo}", "num_inference_steps=12")
    cost, sampler = count(given, build(given), JOB), Sampler.of(golden.pipeline("tiny-flux"), build(given), given)
    with FlopCounterMode(display=False) as text, sdpa_kernel(SDPBackend.MATH):  # the CPU's own has no formula
        sampler.pipe.encode_prompt(JOB.prompt, JOB.prompt, max_sequence_length=16)
    look = Computed()
    with FlopCounterMode(display=False) as whole, sdpa_kernel(SDPBackend.MATH):
        sampler.watch(JOB, [look])
    total = whole.get_total_flops() - text.get_total_flops()
    assert cost.flops(look.steps, 12) == pytest.approx(total, rel=off)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["smoothcache", "delta_dit", "diffusers_taylorseer"])
def test_operations_that_do_not_follow_from_a_few_steps_are_unknown(algo):
    """A step counts as computed if any kind of module runs; the first half of the blocks costs more than the other."""
    cost = cost_of("model=tiny-flux", f"algo={algo}")
    assert cost.skipped_steps is None and cost.flops(range(50), 50) is None and cost.full_step > 0


def test_the_steps_of_a_gap_alternate():
    assert KIB.flops([0, 5], 7) == 2000 + (10 + 1 + 10 + 1) + 10
    assert replace(KIB, skipped_steps=[7, 6, 10, 1]).flops([0], 8) == 1000 + (7 + 6 + 10 + 1) + (10 + 1 + 10)
    assert replace(KIB, skipped_steps=[7]).flops([0], 4) == 1000 + 3 * 7
    assert KIB.flops(range(7), 7) == 7000
    assert Cost(1000, None, None, 1, 1).flops([0], 2) is None is Cost(1000, None, None, 1, 1).flops([0, 1], 2)


@pytest.mark.slow
def test_a_skipped_step_is_that_of_reuse_and_one_pass_over_the_rows():
    """Reuse hands the newest row itself on. The host waits for neither."""
    kernels, moved, syncs, _ = skipped_step("tiny-flux", ["algo=spectrum"])
    least = skipped_step("tiny-flux", ["algo=reuse"])
    row = 64 * 128 * 4  # bytes: tokens, channels, float32
    assert (kernels - least[0], moved - least[1]) == (1, (len(COMPUTED) + 1) * row)
    assert syncs == least[2] == 0


def test_what_a_gate_reads_fits_the_dtype():
    """DiCache on AuraFlow, whose weights are float16, reads its changes in that type."""
    counted = Counted(SimpleNamespace(components={}))
    counted.answer = 1e9
    with counted:
        read = [
            torch.empty(2, dtype=dtype, device="meta").cpu() for dtype in (torch.float16, torch.float32, torch.int64)
        ]
    assert [values[0].item() for values in read] == [65504, 1e9, 1_000_000_000]


def test_lines_have_three_digits():
    assert [operations(n) for n in (5, 74_384_653_418_496, 10**15, 211_476_480)] == [
        "5 FLOPs",
        "74.4 TFLOPs",
        "1,000 TFLOPs",
        "211 MFLOPs",
    ]
    assert size(161_021_952_000) == "161 GB" and size(2_000_000_000_000) == "2,000 GB"
    told = "\n".join(lines(KIB, [0, 1], 4))
    assert "2.01 kFLOPs, 1.99x" in told and "cache at most 2.05 kB, weights 8.19 kB, about 11.3 kB in all" in told
    assert "other people's" in lines(Cost(1000, None, None, 1, 1), None, 4)[1]


def test_what_does_not_fit_is_refused_with_the_way_out():
    check_memory(KIB, 8192 + 2048, "the card")
    with pytest.raises(UserError, match="8.19 kB and the cache 2.05 kB.*site=last_block"):
        check_memory(KIB, 8192 + 2047, "the card")
    with pytest.raises(UserError, match="model.offload=model or group"):
        check_memory(KIB, 8191, "the card")


@pytest.fixture
def small_card(monkeypatch):
    """A GPU that holds a miniature's weights and hardly anything else."""
    card = SimpleNamespace(total_memory=13_300_000, name="a small card")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(main_loop, "run_jobs", lambda *_: iter(()))


@pytest.mark.slow
@pytest.mark.parametrize("algo,fits", [("reuse", True), ("foca", False)])
def test_a_run_is_refused_before_a_model_loads(tmp_path, capsys, small_card, algo, fits):
    given = settings("model=tiny-flux", f"algo={algo}", f"output_base_path={tmp_path}", "exp_name=x")
    prompts = Prompts((Prompt(JOB.prompt),), "0" * 64)
    if fits:
        main_loop.run(given, build(given), prompts)
    else:
        with pytest.raises(UserError, match="a small card has 13.3 MB"):
            main_loop.run(given, build(given), prompts)
    assert "cache at most" in capsys.readouterr().out
    assert read_cost(tmp_path / "x") == count(given, build(given), JOB)


def test_a_pipeline_that_cannot_be_counted_runs_all_the_same(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(main_loop, "count", broken)
    given = settings("model=tiny-flux", "algo=reuse")
    main_loop.foresee(given, build(given), tmp_path, JOB)
    assert "not known beforehand: NotImplementedError: no meta kernel" in capsys.readouterr().out
    assert read_cost(tmp_path) is None


@pytest.mark.parametrize("text", ["{}", "[", '{"full_step": 0, "skipped_steps": [], "cache_bytes": 0}', "null"])
def test_a_damaged_file_is_told_in_one_line(tmp_path, text):
    write_cost(tmp_path, KIB)
    assert read_cost(tmp_path) == KIB
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(UserError, match=r"cost.json is damaged: delete it"):
        read_cost(tmp_path)


def test_the_command(capsys):
    command.main(composed("model=tiny-flux", "algo=teacache", "passes=10", "card=1", config_name="cost"))
    told = capsys.readouterr().out
    assert "10 of 50 steps computed, 5.00x fewer" in told and "cache at most" in told and "fit 1 GB" in told
    with pytest.raises(UserError, match="passes must be"):
        command.main(composed("passes=51", config_name="cost"))
