"""The main loop end to end on random weights: files, resume, bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import start
from PIL import Image

from spectrum_bench.commands import run
from spectrum_bench.commands.entry import check_words, readable
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling import records as jobs
from spectrum_bench.sampling.models import find_weights, fingerprint
from spectrum_bench.sampling.run import disk_errors
from spectrum_bench.scoring.experiments import read_experiment

HOSTILE = [
    "a/b/../../etc/passwd",
    "quotes \" and ' and `ticks`",
    "emoji 🦊 and ünïcödé",
    "<script>alert(1)</script> $(rm -rf) %s {x}",
    "x" * 5000,
    "twice",
    "twice",
]


def test_a_run_writes_samples_records_and_config(compose, words, tmp_path, capsys):
    run.main(compose("algo=spectrum", *words))
    folder = tmp_path / "out/x"
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in records] == ["a red ring", "a blue star"]
    for r in records:
        assert Image.open(folder / r["sample"]).size == (64, 64)
        assert r["computed_steps"] == [0, 1, 2, 3, 4, 6] and r["nfe"] == 6 and r["num_inference_steps"] == 8
        assert r["schedule"] == "adaptive_window(window=2, flex=0.75, warmup=5)" and r["site"] == "LastBlock"
        assert r["latency"].keys() == {"text", "denoise", "decode", "total", "full_step", "skipped_step"}
        assert all(v > 0 for v in r["latency"].values())
        assert r["cache_bytes"] == 6 * 64 * 128 * 4 and r["peak_memory_bytes"] is None
        assert r["versions"]["torch"] == torch.__version__.split("+")[0] and r["device"] and r["git_sha"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["algo"]["lam"] == 0.1 and config["model"]["arguments"]["guidance_scale"] == 3.5
    said = capsys.readouterr().out
    assert "6 of 8 steps computed: 0 1 2 3 4 6\n[#####.#.]" in said


def test_the_sample_is_what_the_plain_pipeline_makes(compose, words, tmp_path, random_pipe):
    run.main(compose("algo=spectrum", "schedule=full", *words))
    record = jobs.read_records(tmp_path / "out/x")[0]
    plain = random_pipe(
        record.prompt, height=64, width=64, num_inference_steps=8, guidance_scale=3.5, max_sequence_length=16,
        generator=torch.Generator().manual_seed(42),
    ).images[0]  # fmt: skip
    assert np.array_equal(np.asarray(plain), np.asarray(Image.open(tmp_path / "out/x" / record.sample)))


def test_running_again_makes_only_what_is_missing(compose, words, tmp_path, capsys):
    run.main(compose(*words))
    folder = tmp_path / "out/x"
    first, second = jobs.read_records(folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.*") if p.name != "records.jsonl"}
    run.main(compose(*words))
    assert "2 samples, 2 of them finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.*") if p.name != "records.jsonl"}
    old = (folder / first.sample).read_bytes()
    (folder / first.sample).unlink()  # a picture lost: its record alone does not count
    (folder / "records" / f"{second.id}.json").unlink()  # a record lost: a kill between picture and record
    (folder / "samples" / ".x.png.1.part").write_bytes(b"half")
    run.main(compose(*words))
    assert "2 samples, 0 of them finished" in capsys.readouterr().out
    assert (folder / first.sample).read_bytes() == old
    assert [r.id for r in jobs.read_records(folder)] == [first.id, second.id]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 100, -1], ids=["empty", "cut", "a byte short"])
def test_a_sample_that_was_cut_after_its_record_is_made_again(compose, words, tmp_path, capsys, kept):
    """A record that says no size, as older ones do, is believed: scoring then compares hashes."""
    run.main(compose(*words))
    folder = tmp_path / "out/x"
    first, second = jobs.read_records(folder)
    old = {record.sample: (folder / record.sample).read_bytes() for record in (first, second)}
    assert [record.sample_bytes for record in (first, second)] == [len(data) for data in old.values()]
    path = folder / "records" / f"{second.id}.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sample_bytes"}))
    for name, data in old.items():
        (folder / name).write_bytes(data[:kept])
    run.main(compose(*words))
    assert "2 samples, 1 of them finished" in capsys.readouterr().out
    assert (folder / first.sample).read_bytes() == old[first.sample]
    assert (folder / second.sample).read_bytes() == old[second.sample][:kept]
    with pytest.raises(UserError, match="damaged|changed"):
        read_experiment(folder).picture(second)


def test_more_prompts_extend_a_finished_run(compose, words, tmp_path, capsys):
    run.main(compose("total_prompt_num=1", *words))
    run.main(compose(*words))
    assert "2 samples, 1 of them finished" in capsys.readouterr().out
    assert len(jobs.read_records(tmp_path / "out/x")) == 2


@pytest.mark.slow
def test_more_samples_of_a_prompt_have_the_seeds_after_it(compose, words, tmp_path, capsys):
    run.main(compose(*words))
    run.main(compose("samples_per_prompt=2", *words))
    assert "4 samples, 2 of them finished" in capsys.readouterr().out
    found = jobs.read_records(tmp_path / "out/x")
    assert [(r.prompt_index, r.seed) for r in found] == [(0, 42), (0, 43), (1, 42), (1, 43)]
    run.main(compose("seed=43", "exp_name=other", *[w for w in words if not w.startswith("exp_name")]))
    alone = jobs.read_records(tmp_path / "out/other")
    for mine, theirs in zip(alone, found[1::2], strict=True):  # as if it had been asked for alone
        assert mine.id == theirs.id
        assert (tmp_path / "out/other" / mine.sample).read_bytes() == (tmp_path / "out/x" / theirs.sample).read_bytes()


def test_hostile_prompts_are_only_ever_data(compose, words, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeff" + "\n\n".join(HOSTILE), encoding="utf-8")
    run.main(compose("num_inference_steps=1", "warmup_steps=1", *[w for w in words if "num_inf" not in w]))
    records = jobs.read_records(tmp_path / "out/x")
    assert [r.prompt for r in records] == HOSTILE
    assert len({r.id for r in records}) == len(HOSTILE)
    assert {p.name for p in (tmp_path / "out/x/samples").iterdir()} == {f"{r.id}.png" for r in records}
    assert all(re.fullmatch(r"[0-9a-f]{16}", r.id) for r in records)


def test_another_configuration_is_kept_out_of_a_folder(compose, words, tmp_path):
    run.main(compose(*words))
    for other, key in (("seed=1", "seed"), ("algo.lam=0.2", "forecaster"), ("algo=fora", "schedule")):
        with pytest.raises(UserError, match=f"another configuration .*{key}"):
            run.main(compose(other, *words))
    (tmp_path / "prompts.txt").write_text("other\n")
    with pytest.raises(UserError, match="prompts_sha256"):
        run.main(compose(*words))
    assert len(jobs.read_records(tmp_path / "out/x")) == 2


@pytest.mark.parametrize(
    "prepare,said",
    [
        (lambda t: ["prompt_file=nowhere.txt"], "no prompt file"),
        (lambda t: (t / "e.txt").write_text("\n \n") and [f"prompt_file={t}/e.txt"], "holds no prompt"),
        (lambda t: (t / "l.txt").write_bytes(b"ok\n\xff") and [f"prompt_file={t}/l.txt"], r"not UTF-8 \(line 2\)"),
        (lambda t: [f"prompt_file={t}"], "is a folder"),
        (lambda t: (t / "f").write_text("x") and [f"output_base_path={t}/f/g"], "cannot write to"),
        (lambda t: ["model.repo=nobody/nothing"], "nobody/nothing are not on this machine: python download.py"),
        (lambda t: [f"model.repo={t}"], "no model_index.json"),
        (lambda t: ["seed=abc"], "seed must be a whole number"),
        (lambda t: ["total_prompt_num=0"], "total_prompt_num must be"),
        (lambda t: ["num_inference_steps=0"], "num_inference_steps must be"),
        (lambda t: ["exp_name=../up"], "exp_name"),
        (lambda t: ["model.dtype=int8"], "none of float32"),
        (lambda t: ["model.width=abc"], "model.width must be"),
        (lambda t: ["model.height=100"], "multiple of 16"),
        (lambda t: ["device=gpu"], "none of cpu, cuda"),
        (lambda t: ["device=cuda:99"], "torch sees"),
        (lambda t: [f"seed={2**63}"], "too large"),
        (lambda t: ["samples_per_prompt=0"], "samples_per_prompt must be"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_a_model_is_loaded(compose, words, tmp_path, monkeypatch, prepare, said):
    def never(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("spectrum_bench.sampling.models.load_pipeline", never)
    given = prepare(tmp_path)
    keys = [w.split("=")[0] for w in given]
    with pytest.raises(UserError, match=said) as error:
        run.main(compose(*[w for w in words if w.split("=")[0] not in keys], *given))
    assert "\n" not in str(error.value)


def test_other_weights_under_the_same_name_are_kept_out(compose, words, tmp_path, weights):
    copy = tmp_path / "copy"
    shutil.copytree(weights, copy)
    words = [f"model.repo={copy}", *words[1:]]
    run.main(compose(*words))
    file = copy / "transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="another configuration .*model"):
        run.main(compose(*words))


def test_a_footnote_does_not_make_another_experiment(compose, words, capsys):
    run.main(compose(*words))
    run.main(compose(*words, "model.note=changed"))
    assert "2 samples, 2 of them finished" in capsys.readouterr().out


@pytest.mark.slow
def test_damaged_bookkeeping_is_named(compose, words, tmp_path):
    run.main(compose(*words))
    folder = tmp_path / "out/x"
    record = next((folder / "records").iterdir())
    for file, said in ((record, "is damaged: delete it"), (folder / "config.yaml", "config.yaml is damaged")):
        file.write_text("{")
        with pytest.raises(UserError, match=said):
            run.main(compose(*words))
    for text in ("{", '{"id": 1}'):
        (folder / "records.jsonl").write_text(text)
        with pytest.raises(UserError, match="damaged or of another version"):
            jobs.read_records(folder)


def test_a_folder_that_became_read_only(compose, words, tmp_path, monkeypatch):
    run.main(compose(*words))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "samples")
    with pytest.raises(UserError, match="cannot write to .*samples"):
        run.main(compose(*words))


def test_a_pipeline_without_one_of_its_parts(weights, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(weights, copy)
    shutil.rmtree(copy / "text_encoder_2")
    with pytest.raises(UserError, match="has no text_encoder_2"):
        find_weights(str(copy))


def test_weights_are_told_by_all_that_a_pipeline_is_loaded_from(weights, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(weights, copy)
    before = fingerprint(copy)
    assert before == fingerprint(weights)
    (copy / "README.md").write_text("no part of it")
    assert fingerprint(copy) == before
    changes = ("scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "vae/diffusion_pytorch_model.safetensors")
    for name in changes:
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert fingerprint(copy) != before, name
        (copy / name).write_bytes(data)
    assert fingerprint(copy) == before


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"\xff" * 64 + b[64:], lambda b: b""])
def test_a_damaged_weights_file_is_named(weights, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(weights, copy)
    file = copy / "transformer/diffusion_pytorch_model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.safetensors is damaged .*: fetch it again"):
        find_weights(str(copy))


@pytest.mark.parametrize(
    "given,said",
    [
        (["algo=spectrm"], "there is no algo=spectrm (did you mean spectrum?)"),
        (["model=tiny-flus"], "did you mean tiny-flux?"),
        (["algo.lamda=1"], "there is no key algo.lamda (did you mean algo.lam?)"),
        (["windowsize=2"], "(did you mean window_size?)"),
        (["-m", "algo=fora,spectrum", "sed=1"], "did you mean seed?"),
        (["nonsense"], "'nonsense' is not key=value"),
        (["seed='1"], "cannot read"),
        (["site=null"], "site"),
    ],
    ids=str,
)
def test_typos_get_one_line_with_the_nearest_name(given, said, capsys):
    with pytest.raises(SystemExit) as stop:
        check_words("base", given)
    error = capsys.readouterr().err
    assert stop.value.code == 1 and said in error and error.count("\n") == 1


def test_the_command_line_fails_with_one_line_and_exit_code_1(words):
    process = start("algo=spectrum", *words, "warmup_steps=-1")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.strip() == "error: warmup must be a whole number of at least 1, not -1" and out == ""


@pytest.mark.crash
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on(words, tmp_path, how):
    """Ctrl-C and kill -9 in the middle leave only whole files, and the next run makes the rest."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(40)))
    process = start("num_inference_steps=20", *[w for w in words if "num_inf" not in w])
    folder = tmp_path / "out/x"
    for _ in range(3000):
        if len(list(folder.glob("records/*.json"))) >= 1:
            break
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=60)
    done = len(list(folder.glob("records/*.json")))
    assert 1 <= done < 40
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert len((folder / "records.jsonl").read_text().splitlines()) == done
    for path in folder.glob("samples/*.png"):
        Image.open(path).load()
    process = start("num_inference_steps=20", *[w for w in words if "num_inf" not in w])
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and f"40 samples, {done} of them finished" in out
    assert [r.prompt for r in jobs.read_records(folder)] == [f"prompt {i}" for i in range(40)]


@pytest.mark.slow
def test_a_sweep_and_help(words, tmp_path):
    process = start("-m", "algo=reuse,nocache", *[w for w in words if "exp_name" not in w])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert {p.parent.name for p in tmp_path.glob("out/*/records.jsonl")} == {"tiny-flux_reuse", "tiny-flux_nocache"}
    process = start("--help")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "text_to_image.py model=flux algo=spectrum" in out and "window_size" in out


@pytest.mark.slow
def test_entry_scripts_run_from_anywhere(words, tmp_path):
    command = [sys.executable, ROOT / "src/text_to_image.py", "algo=reuse", *words]
    subprocess.run(command, cwd="/", check=True, capture_output=True, timeout=120)
    assert len(jobs.read_records(Path(tmp_path, "out/x"))) == 2


def test_the_name_that_upstreams_users_type_is_sdxl():
    """Words are left to it, a model= among them."""
    for word, name in (("algo=spectrum", "sdxl"), ("model=tiny-sdxl", "tiny-sdxl")):
        words = [sys.executable, str(ROOT / "src/text_to_image_sdxl.py"), word, "--cfg", "job"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert yaml.safe_load(shown)["model"]["name"] == name


def test_random_weights_are_timed_and_never_scored(compose, words, tmp_path, random_pipe, monkeypatch):
    """model.init=random builds the architecture and needs no folder; its pictures get dashes, not figures."""
    from spectrum_bench.reporting import tables
    from spectrum_bench.sampling import architectures
    from spectrum_bench.scoring import evaluation
    from spectrum_bench.scoring.experiments import read_experiment

    asked = []

    def build(name, *, dtype, device, vae_dtype):
        asked.append((name, dtype, device, vae_dtype))
        return random_pipe

    monkeypatch.setattr(architectures, "random_pipeline", build)
    monkeypatch.setattr("spectrum_bench.sampling.run.foresee", lambda *_: None)  # no architecture has this name
    monkeypatch.setattr("spectrum_bench.sampling.clock.CROWD", 1.0)  # other tests run beside this one
    words = [*words, "model.init=random", "model.repo=nowhere/at-all", "+model.vae_dtype=float16", "device=cpu"]
    for algo in ("nocache", "spectrum"):
        run.main(compose(f"algo={algo}", *words, f"exp_name={algo}"))
    assert asked == [("tiny-flux", "float32", "cpu", "float16")] * 2
    reference, spectrum = (read_experiment(tmp_path / "out" / name) for name in ("nocache", "spectrum"))
    for _, summary in evaluation.evaluate([reference, spectrum], reference):
        assert all("random weights" in found["unavailable"] for found in summary["metrics"].values())
    table = tables.build([spectrum], reference)
    assert table.rows[-1].mean("psnr") is None and table.rows[-1].costs.speedup.mean > 0
    with pytest.raises(UserError, match="model.init=maybe is none of pretrained, random"):
        run.main(compose(*words[:-3], "model.init=maybe"))


def test_flags_and_home_folders_are_read_where_they_stand():
    words = ["algo=fora", "-m", "seed=1,2", "prompt_file=~/mine.txt", "exp_name=a~b"]
    home = str(Path("~").expanduser())
    assert readable(words) == ["-m", "algo=fora", "seed=1,2", f"prompt_file={home}/mine.txt", "exp_name=a~b"]


def test_options_that_exclude_each_other_are_told_in_one_line(capsys):
    with pytest.raises(SystemExit):
        check_words("base", ["-m", "seed=1,2", "--cfg", "job"])
    assert capsys.readouterr().err.startswith("error: --run, --multirun, --cfg, --info and --shell_completion exclude")


def test_a_folder_of_weights_that_is_not_there_is_called_a_folder():
    with pytest.raises(UserError, match="there is no folder /folder/that/is/not/there"):
        find_weights("/folder/that/is/not/there")


def test_a_missing_program_is_not_blamed_on_the_folder(tmp_path):
    missing = FileNotFoundError(2, "No such file or directory", "/opt/ffmpeg")
    with pytest.raises(UserError, match="^/opt/ffmpeg: No such file"), disk_errors(tmp_path):
        raise missing
    full = OSError(28, "No space left on device", str(tmp_path / "samples/x.png"))
    with pytest.raises(UserError, match=f"^{tmp_path}: No space left"), disk_errors(tmp_path):
        raise full
