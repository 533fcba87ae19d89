"""evaluate.py: pairs, statistics, sanity anchors, files, and one clear line for every kind of bad input."""

import csv
import itertools
import json
import math
import os
import re
import threading
import time
import warnings

import fabricate
import numpy as np
import pytest
import yaml
from PIL import Image

from spectrum_bench.errors import UserError
from spectrum_bench.reporting import formats, tables
from spectrum_bench.sampling import media
from spectrum_bench.scoring import evaluation, experiments, scorers, stats
from spectrum_bench.scoring.experiments import Decoded, pairs, read_experiment
from spectrum_bench.scoring.metrics import pixel
from spectrum_bench.scoring.scorers import side_by_side
from spectrum_bench.scoring.summary import describe

PROMPTS = fabricate.captions(6)
PICTURES = fabricate.pictures(PROMPTS)


@pytest.fixture
def reference(tmp_path):
    return fabricate.experiment(tmp_path / "nocache", PROMPTS, PICTURES)


@pytest.fixture
def spectrum(tmp_path):
    return fabricate.experiment(tmp_path / "spectrum", PROMPTS, fabricate.noisy(PICTURES, 8), "spectrum", 14)


def evaluate(folder, reference, wanted=None):
    return next(evaluation.evaluate([read_experiment(folder)], read_experiment(reference), wanted))[1]


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def edit_config(folder, change):
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


def edit_records(folder, change):
    path = folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(r) + "\n" for r in change(records)))


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def test_files(spectrum, reference):
    summary = evaluate(spectrum, reference)
    table, records = rows(spectrum), read_experiment(spectrum).records
    assert [r["id"] for r in table] == [r.id for r in records]
    wanted = [
        "id",
        "prompt_index",
        "seed",
        "psnr",
        "ssim",
        "lpips",
        "caption",
        "things",
        "sizes",
        "relation",
        "background",
    ]
    assert list(table[0])[: len(wanted)] == wanted
    for row, record, picture in zip(table, records, PICTURES, strict=True):
        noisy = np.asarray(Image.open(spectrum / record.sample))
        assert float(row["psnr"]) == pixel.psnr(noisy, picture)
        assert row["caption"] == "" and row["things"] == "" and row["identical"] == "0"
    assert summary["metrics"]["psnr"]["mean"] == pytest.approx(np.mean([float(r["psnr"]) for r in table]))
    low, high = summary["metrics"]["psnr"]["interval"]
    assert low < summary["metrics"]["psnr"]["mean"] < high
    assert "names no judge" in summary["metrics"]["caption"]["unavailable"]
    assert summary == json.loads((spectrum / "summary.json").read_text()) and summary["schema"] == 2
    assert summary["versions"].keys() >= {"python", "numpy", "scipy", "pillow", "torch", "lpips"}
    assert not list(spectrum.glob(".*"))


def test_it_is_deterministic(spectrum, reference):
    first = evaluate(spectrum, reference), (spectrum / "metrics.csv").read_bytes()
    assert first == (evaluate(spectrum, reference), (spectrum / "metrics.csv").read_bytes())


def test_reference_against_itself_and_noise_floor(reference, tmp_path):
    again = fabricate.experiment(tmp_path / "again", PROMPTS, PICTURES)
    for folder in (reference, again):
        summary = evaluate(folder, reference)
        assert summary["identical_pairs"] == 6
        assert summary["metrics"]["psnr"] | {"unit": 0} == {
            "mean": 100.0, "interval": None, "n": 6, "unit": 0, "higher_is_better": True
        }  # fmt: skip


def test_anchors(spectrum, reference):
    anchors = evaluate(spectrum, reference)["anchors"]
    assert anchors["itself"]["psnr"] == 100 and anchors["itself"]["ssim"] == pytest.approx(1)
    assert anchors["shuffled"]["psnr"] < 20 and anchors["shuffled"]["ssim"] < 0.6


def test_one_prompt_only(tmp_path):
    reference = fabricate.experiment(tmp_path / "nocache", PROMPTS[:1], PICTURES[:1])
    one = fabricate.experiment(tmp_path / "one", PROMPTS[:1], fabricate.noisy(PICTURES[:1], 8), "fora", 14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = evaluate(one, reference)
    assert summary["anchors"]["shuffled"] is None and summary["metrics"]["psnr"]["interval"] is None


def test_wrapping_arithmetic_would_be_caught(spectrum, reference, monkeypatch):
    """PSNR in uint8, as one widely used tool computes it, gives unrelated pictures some 28 dB."""

    def wrapping(a, b):
        mse = np.mean((a - b) ** 2)
        return 100.0 if mse == 0 else float(10 * np.log10(255**2 / mse))

    monkeypatch.setattr(pixel, "make_psnr", lambda model: wrapping)
    (doubt,) = evaluate(spectrum, reference)["anchors"]["doubts"]
    assert re.match(r"psnr of different prompts' pictures is 2[78].*, no worse than 25", doubt)


def test_a_narrow_domain_is_scored_with_a_doubt(tmp_path):
    """Pictures of different prompts that differ in one corner of a white ground are honest."""
    pictures = np.full((6, 64, 64, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        picture[:6, 8 * i : 8 * i + 6] = 200
    reference = fabricate.experiment(tmp_path / "nocache", PROMPTS, pictures)
    other = fabricate.experiment(tmp_path / "fora", PROMPTS, fabricate.noisy(pictures, 4), "fora", 14)
    anchors = evaluate(other, reference)["anchors"]
    doubt, *_ = anchors["doubts"]
    assert anchors["shuffled"]["psnr"] > 25 and doubt.startswith("psnr of different prompts' pictures is ")
    lines = formats.plain(tables.build([read_experiment(other)], read_experiment(reference)))
    assert "In doubt: psnr of different prompts' pictures is" in lines


def test_a_metric_that_is_not_perfect_on_itself_is_caught(spectrum, reference, monkeypatch):
    monkeypatch.setattr(pixel, "make_ssim", lambda model: lambda a, b: 0.99)
    with pytest.raises(UserError, match="sanity: ssim of a picture and itself is 0.99, not 1"):
        evaluate(spectrum, reference)


def test_one_picture_for_all_prompts_is_caught(tmp_path):
    same = np.repeat(PICTURES[:1], 6, 0)
    reference = fabricate.experiment(tmp_path / "nocache", PROMPTS, same)
    with pytest.raises(UserError, match="shows one picture for all"):
        evaluate(reference, reference)


def test_duplicate_prompts_are_not_each_others_shuffle(tmp_path):
    prompts, pictures = PROMPTS[:2] * 3, np.concatenate([PICTURES[:2]] * 3)
    reference = fabricate.experiment(tmp_path / "nocache", prompts, pictures)
    summary = evaluate(reference, reference)
    assert summary["anchors"]["shuffled"]["psnr"] < 20 and summary["metrics"]["psnr"]["n"] == 2


def test_prompts_that_differ_late_are_shown_where_they_differ(tmp_path):
    long = "a very long sentence about a ring that goes on and on, "
    for name, end in {"nocache": "red", "fora": "blue"}.items():
        fabricate.experiment(tmp_path / name, [long + end], PICTURES[:1], name)
    with pytest.raises(UserError, match=r"is '\.\.\..*blue' in .* but '\.\.\..*red' in"):
        pairs(read_experiment(tmp_path / "fora"), read_experiment(tmp_path / "nocache"))


def test_hostile_prompts(tmp_path):
    prompts = fabricate.HOSTILE
    pictures = fabricate.pictures(prompts)
    reference = fabricate.experiment(tmp_path / "nocache", prompts, pictures)
    other = fabricate.experiment(tmp_path / "fora", prompts, fabricate.noisy(pictures, 20), "fora", 14)
    assert evaluate(other, reference)["metrics"]["psnr"]["n"] == len(prompts)
    assert len(rows(other)) == len(prompts)


def test_partners_are_found_by_prompt_index_and_seed(spectrum, reference, capsys):
    edit_records(spectrum, lambda records: records[:1:-1])  # other order, two fewer
    experiment, target = read_experiment(spectrum), read_experiment(reference)
    assert [(a.prompt_index, b.prompt_index) for a, b in pairs(experiment, target)] == [(i, i) for i in range(2, 6)]
    assert evaluate(spectrum, reference)["unpaired"] == {"experiment": 0, "reference": 2}
    script = fabricate.run_script("evaluate.py", spectrum, f"reference={reference}")
    assert script.returncode == 0 and "left out: 0 samples and 2 references without a partner" in script.stdout


def test_captions_beside_the_references_own(tmp_path, monkeypatch):
    """A judge that sees what is asked for in the first sample only."""
    judged, prompts = {"judge": "somewhere"}, [*PROMPTS, "no grammar"]
    clean = fabricate.pictures(prompts)
    images = fabricate.noisy(clean, 8)
    reference = fabricate.experiment(tmp_path / "nocache", prompts, clean, model=judged)
    other = fabricate.experiment(tmp_path / "fora", prompts, images, "fora", 14, model=judged)
    names = ("caption", "things", "sizes", "relation", "background")

    def scorer(sample, prompt):
        value = math.nan if prompt == "no grammar" else float(prompt == PROMPTS[0] and (sample == images[0]).all())
        return dict.fromkeys(names, value)

    monkeypatch.setattr("spectrum_bench.scoring.metrics.caption.make_caption", lambda model: scorer)
    found = evaluate(other, reference)
    assert found["metrics"]["caption"]["mean"] == pytest.approx(1 / 6) and found["metrics"]["caption"]["n"] == 6
    assert found["metrics"]["caption"]["reference"]["mean"] == 0
    assert found["metrics"]["caption"]["difference"]["mean"] == pytest.approx(1 / 6)
    assert found["metrics"]["caption"]["details"]["things"]["n"] == 6
    assert rows(other)[6]["caption"] == rows(other)[6]["caption_reference"] == ""
    assert float(rows(other)[0]["caption"]) == 1


def test_a_sample_is_compared_with_its_target_caption(tmp_path, monkeypatch):
    """Of an edit the prompt is an instruction: every metric that reads a text, and the anchors, get the caption."""
    read = []

    def scorer(sample, prompt):
        read.append(prompt)
        return dict.fromkeys(("caption", "things", "sizes", "relation", "background"), float(len(prompt)))

    monkeypatch.setattr("spectrum_bench.scoring.metrics.caption.make_caption", lambda model: scorer)
    prompts, more = ["make it red", "make it blue"], {"model": {"judge": "somewhere"}, "target_caption": "a red ring"}
    clean = fabricate.pictures(prompts)
    reference = fabricate.experiment(tmp_path / "nocache", prompts, clean, **more)
    other = fabricate.experiment(tmp_path / "fora", prompts, fabricate.noisy(clean, 8), "fora", 14, **more)
    assert evaluate(other, reference)["metrics"]["caption"]["mean"] == len("a red ring")
    assert set(read) == {"a red ring"} and len(read) > 4


def test_samples_in_small_windows_get_the_same_rows(spectrum, reference, monkeypatch):
    first = evaluate(spectrum, reference), (spectrum / "metrics.csv").read_bytes()
    for samples, size in ((1, 2**26), (32, 1), (4, 2 * PICTURES[0].nbytes)):
        monkeypatch.setattr(scorers, "SAMPLES", samples)
        monkeypatch.setattr(scorers, "BYTES", size)
        assert first == (evaluate(spectrum, reference), (spectrum / "metrics.csv").read_bytes())


def test_the_reference_is_decoded_once_while_it_fits_into_memory(reference, monkeypatch):
    experiment = read_experiment(reference)
    read = []
    monkeypatch.setattr(media, "read", lambda path, read_file=media.read: read.append(path) or read_file(path))
    decoded = Decoded(experiment, budget=2 * PICTURES[0].nbytes + 1)
    for _ in range(2):
        for record, picture in zip(experiment.records, PICTURES, strict=True):
            assert np.array_equal(decoded.picture(record), picture)
    assert len(read) == 6 + 4  # two of six are kept

    read.clear()
    list(evaluation.evaluate([experiment, experiment], experiment, "psnr"))
    assert len(read) == 3 * 6  # the samples of both experiments, and the reference once


def test_what_is_computed_side_by_side_keeps_its_order_and_its_error():
    def one(a, b):
        time.sleep(0.002 * (a % 3))  # later ones are ready before earlier ones
        return a, b, threading.get_ident()

    found = list(side_by_side(one, range(6), "abcdef"))
    assert [each[:2] for each in found] == list(zip(range(6), "abcdef", strict=True))
    assert threading.get_ident() not in {each[2] for each in found}
    with pytest.raises(KeyError):
        list(side_by_side({1: 2}.__getitem__, range(9)))
    pulled = []
    endless = side_by_side(lambda i: i, (pulled.append(i) or i for i in itertools.count()))
    assert next(endless) == 0 and len(pulled) <= 2 * os.cpu_count() + 1  # pictures that nobody asked for take memory
    endless.close()


def test_a_progress_bar_is_the_callers(spectrum, reference):
    titles = []

    def track(steps, title):
        titles.append((title, len(steps)))
        return steps

    experiments = [read_experiment(spectrum), read_experiment(reference)]
    list(evaluation.evaluate(experiments, experiments[1], "psnr", track))
    assert titles == [("scoring spectrum", 6), ("scoring nocache", 6)]


def test_lines_for_a_person(spectrum, reference):
    lines = list(describe(evaluate(spectrum, reference)))
    assert lines[0].startswith("psnr     3") and "dB  (95 % in [" in lines[0] and lines[0].endswith(", 6 prompts)")
    assert [line[:3] for line in lines[2:4]] == ["—  "] * 2
    assert lines[4].startswith("sanity, reference against itself: psnr 100  ssim 1")
    assert lines[5].startswith("sanity, reference against shuffled prompts: psnr ")


def test_a_missing_anchor_gives_its_reason(spectrum, reference):
    """Six prompts and a metric that compares no pictures; then one prompt."""
    summary = evaluate(spectrum, reference)
    nothing = {"itself": {}, "shuffled": {}}
    assert list(describe(summary | {"anchors": nothing}))[-1].endswith("prompts: n/a, no metric compares")
    assert list(describe(summary | {"anchors": nothing | {"shuffled": None}}))[-1].endswith("n/a, one prompt only")


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def test_interval_covers_and_pairs_are_sharper():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(40):
        low, high = stats.interval(rng.normal(5, 2, 30))
        covered += low <= 5 <= high
    assert covered >= 33  # 38 expected
    base = rng.normal(20, 3, 50)
    near = base + rng.normal(0.5, 0.3, 50)
    prompts = range(50)
    assert not stats.tied(near - base, prompts)
    assert (
        stats.estimate(base, prompts).high > stats.estimate(near, prompts).low
    )  # unpaired, nobody can tell them apart
    assert stats.tied(base - base, prompts) and stats.tied(rng.permutation([1, -1] * 25), prompts)


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0, 3.0], [0.0, 0.0], [1.0, 1.0 + 1e-16]])
def test_no_interval_and_no_warning_from_degenerate_data(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = stats.estimate(values, range(len(values)))
    if not values:
        assert estimate is None
    else:
        assert estimate.low is None and estimate.high is None and estimate.n == len(values)
        assert estimate.mean == pytest.approx(values[0])


@pytest.mark.parametrize("values", [[0, 1], [0] * 7 + [1], [1] * 30 + [0], [100.0] * 5 + [20.0]])
def test_intervals_of_awkward_data_lie_around_the_mean_and_in_the_data(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = stats.estimate(np.array(values, float), range(len(values)))
    assert min(values) <= estimate.low < estimate.mean < estimate.high <= max(values)


def test_seeds_of_a_prompt_count_once():
    once = stats.estimate([1.0, 2.0, 4.0], "abc")
    assert stats.estimate([1.0, 2.0, 4.0] * 5, "abc" * 5) == once
    assert stats.estimate([1.0, math.nan, 4.0], "abc").n == 2


def test_one_instruction_for_two_pictures_is_two_edits(tmp_path):
    """What stands beside a prompt is part of what a sample is of; without it, samples of one prompt count once."""
    prompts = [PROMPTS[0], *PROMPTS[:2]]
    for name, pixels in {"ref": PICTURES[:3], "fast": fabricate.noisy(PICTURES[:3], 9)}.items():
        folder = fabricate.experiment(tmp_path / name, prompts, pixels)
        lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        for line, sha256 in zip(lines, ["0" * 64, "1" * 64, "0" * 64], strict=True):
            line["inputs"] = {"image": sha256}
        (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = fabricate.experiment(tmp_path / "plain", prompts, PICTURES[:3])
    summary = evaluate(tmp_path / "fast", tmp_path / "ref", "psnr")
    assert summary["metrics"]["psnr"]["n"] == 3 and read_experiment(tmp_path / "fast").records[0].subject != prompts[0]
    assert [record.subject for record in read_experiment(plain).records] == prompts


@pytest.mark.parametrize("prompts", ["ab", "abc", "aabbc", "abcdefghij" * 3])
def test_derangement_moves_every_prompt(prompts):
    for i, j in enumerate(stats.derangement(prompts)):
        assert prompts[i] != prompts[j]
    assert stats.derangement(prompts[:1] * 4) is None


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_refused_references(spectrum, reference, tmp_path):
    short = fabricate.experiment(tmp_path / "short", PROMPTS, PICTURES, nfe=20, steps=20)
    other = fabricate.experiment(tmp_path / "flux", PROMPTS, PICTURES, model={"name": "flux"})
    wide = fabricate.experiment(tmp_path / "wide", PROMPTS, PICTURES, model={"dtype": "float16"})
    seed = fabricate.experiment(tmp_path / "seed", PROMPTS, PICTURES, seed=7)
    worded = fabricate.experiment(tmp_path / "worded", PROMPTS[::-1], PICTURES)
    for folder, words in [
        (spectrum, r"skips steps \(spectrum: 14 of 50 passes\) and cannot be a reference"),
        (short, "takes 50 steps and its reference .* only 20: make the reference with num_inference_steps=50"),
        (other, "made with tiny-flux and .* with flux: give a reference made with the same model"),
        (wide, "has model.dtype=None and .* has float16"),
        (seed, r"\(seeds \[0\]\) and .* \(seeds \[7\]\) have no sample in common"),
        (worded, "prompt 0 is 'a .* make both with the same prompt_file"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            evaluate(spectrum, folder)
        assert "\n" not in str(error.value)
    plain = fabricate.experiment(tmp_path / "plain", PROMPTS, PICTURES, model={"vae_tiling": False, "scheduler": {}})
    assert not experiments.check_reference(read_experiment(spectrum), read_experiment(plain))
    fewer = fabricate.experiment(tmp_path / "steps", PROMPTS, fabricate.noisy(PICTURES, 9), "steps", 25, 25)
    assert evaluate(fewer, reference)["samples"] == 6
    weights = {"name": "student", "weights": "other", "teacher": "tiny-flux"}
    student = fabricate.experiment(tmp_path / "student", PROMPTS, PICTURES, "steps", 4, 4, model=weights)
    assert evaluate(student, reference)["samples"] == 6
    with pytest.raises(UserError, match="made with tiny-flux and .* with student"):
        evaluate(spectrum, fabricate.experiment(tmp_path / "all", PROMPTS, PICTURES, model=weights))
    edit_config(student, lambda config: config["model"].update(dtype="float16"))
    with pytest.raises(UserError, match="has model.dtype=float16 and .* has None"):
        evaluate(student, reference)
    edit_config(spectrum, lambda config: config["model"].update(note="words", judge=None))
    assert evaluate(spectrum, reference)["samples"] == 6


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda p: Image.open(p).convert("L").save(p), "PNG L, not RGB PNG"),
        (lambda p: Image.open(p).convert("RGBA").save(p), "PNG RGBA, not RGB PNG"),
        (lambda p: Image.open(p).save(p, "JPEG"), "JPEG RGB, not RGB PNG"),
        (lambda p: Image.open(p).resize((32, 32)).save(p), "32x32 and its reference 64x64"),
        (lambda p: p.unlink(), "no sample"),
        (lambda p: p.write_bytes(p.read_bytes()[:900]), "is damaged"),
        (lambda p: p.write_bytes(b""), "is damaged"),
    ],
)
def test_spoilt_pictures_are_named(spectrum, reference, spoil, words):
    path = spectrum / read_experiment(spectrum).records[2].sample
    spoil(path)
    with pytest.raises(UserError, match=words) as error:
        evaluate(spectrum, reference)
    assert str(path) in str(error.value) and not (spectrum / "metrics.csv").exists()


def test_pictures_too_small_for_a_metric(tmp_path):
    small = fabricate.pictures(PROMPTS, side=8)
    reference = fabricate.experiment(tmp_path / "nocache", PROMPTS, small)
    with pytest.raises(UserError, match=r"nocache/samples/\w+.png is 8x8, smaller than the metric's window"):
        evaluate(reference, reference)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "no experiment directory given"),
        (["{spectrum}"], "reference= is missing"),
        (["{spectrum}", "referense={reference}"], "no key referense: did you mean reference="),
        (["{spectrum}", "reference="], "reference= has no value"),
        (["{spectrum}", "--reference", "{reference}"], "no option --reference"),
        (["/nowhere", "reference={reference}"], "no experiment directory in /nowhere"),
        (["{spectrum}", "reference=/nowhere"], "/nowhere is no experiment directory"),
    ],
)
def test_bad_command_lines(spectrum, reference, arguments, words):
    found = fabricate.run_script("evaluate.py", *(a.format(spectrum=spectrum, reference=reference) for a in arguments))
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1 and words in found.stderr


def test_unreadable_directories(spectrum, reference):
    for text, words in (("a: [", "is not YAML"), ("just words", "holds no settings")):
        (spectrum / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=words):
            read_experiment(spectrum)
    (spectrum / "config.yaml").unlink()
    with pytest.raises(UserError, match="no .*config.yaml"):
        read_experiment(spectrum)


def test_schemas_of_a_configuration(spectrum):
    for schema in (1, 2):
        edit_config(spectrum, lambda config, schema=schema: config.update(schema=schema))
        assert read_experiment(spectrum).name == "spectrum"
    edit_config(spectrum, lambda config: config.update(schema=3))
    with pytest.raises(UserError, match="config.yaml was made by a newer version .schema 3.: update"):
        read_experiment(spectrum)


def test_bad_input_costs_no_heavy_import(tmp_path):
    """The complaint comes before torch is loaded."""
    code = (
        "import runpy, sys; sys.argv = ['evaluate.py', '/nowhere', 'reference=/nowhere']\n"
        "try: runpy.run_path('src/evaluate.py', run_name='__main__')\n"
        "except SystemExit as e: assert e.code == 1\n"
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules"
    )
    found = fabricate.run_python("-c", code)
    assert found.returncode == 0, found.stderr
    assert "error: no experiment directory in /nowhere" in found.stderr


def test_help():
    found = fabricate.run_script("evaluate.py", "--help")
    assert found.returncode == 0 and "reference=<dir>" in found.stdout and "metrics.csv" in found.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Earlier scores


def test_another_metric_is_added_to_the_scores_that_are_there(spectrum, reference):
    both, whole = evaluate(spectrum, reference, "psnr,ssim"), rows(spectrum)
    (spectrum / "summary.json").unlink()
    alone = evaluate(spectrum, reference, "psnr")
    assert list(alone["metrics"]) == ["psnr"] and "ssim" not in rows(spectrum)[0]
    merged = evaluate(spectrum, reference, "ssim")
    assert rows(spectrum) == whole
    assert merged["metrics"] == both["metrics"] and merged["anchors"] == both["anchors"]


def test_earlier_scores_of_other_records_or_another_reference_are_dropped(spectrum, reference):
    evaluate(spectrum, reference)
    edit_records(spectrum, lambda records: [{**r, "latency": {**r["latency"], "total": 9.0}} for r in records])
    stale = evaluate(spectrum, reference, "ssim")
    assert list(stale["metrics"]) == ["ssim"] and "psnr" not in rows(spectrum)[0]
    evaluate(spectrum, reference)
    edit_records(reference, lambda records: [{**r, "latency": {**r["latency"], "total": 9.0}} for r in records])
    stale = evaluate(spectrum, reference, "ssim")
    assert list(stale["metrics"]) == ["ssim"]
