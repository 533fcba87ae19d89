"""Clips from prompt to page: lossless files, scores by frame, a page that plays them."""

import json
import resource
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from helpers import composed, settings
from PIL import Image

from spectrum_bench.commands import run
from spectrum_bench.errors import UserError
from spectrum_bench.reporting import page as report
from spectrum_bench.sampling import media
from spectrum_bench.sampling.records import read_records
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import read_experiment
from spectrum_bench.scoring.metrics import pixel
from spectrum_bench.scoring.scorers import Item, by_frame

pytestmark = pytest.mark.slow


def clip(frames=5, height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(9, 64, 64), (1, 16, 16), (5, 50, 38), (3, 33, 47)])
def test_a_clip_comes_back_bit_for_bit(tmp_path, shape):
    pixels = clip(*shape)
    files = media.encode(pixels, fps=8)
    assert list(files) == [".mp4", ".preview.mp4"] and files == media.encode(pixels, fps=8)
    (tmp_path / "a.mp4").write_bytes(files[".mp4"])
    assert np.array_equal(media.read(tmp_path / "a.mp4"), pixels)


def test_a_clip_that_ffmpeg_could_not_write_whole_is_no_clip():
    """A limit on the size of files stands for a full disk; ffmpeg's end says nothing of either."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="could not write a whole clip"):
            media.encode(clip(9, 64, 64), fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_other_readers_see_the_same_pixels(tmp_path):
    """ffmpeg by itself, without imageio between."""
    (tmp_path / "a.mp4").write_bytes(media.encode(clip(), fps=8)[".mp4"])
    facts, *frames = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"), pix_fmt="rgb24")
    assert facts["size"] == (64, 48) and facts["fps"] == 8
    assert b"".join(frames) == clip().tobytes()


def test_a_picture_is_a_png(tmp_path):
    files = media.encode(clip()[0], fps=None)
    (tmp_path / "a.png").write_bytes(files[".png"])
    assert list(files) == [".png"] and np.array_equal(media.read(tmp_path / "a.png"), clip()[0])


def test_a_picture_is_encoded_at_the_fastest_level():
    """RFC 1950: the header of a zlib stream says in two bits how hard the encoder tried; 0 is the fastest."""
    data = media.encode(np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3), None)[".png"]
    header = data.index(b"IDAT") + 4
    assert data[header] & 15 == 8
    assert data[header + 1] >> 6 == 0


def test_scores_of_clips_are_means_over_frames():
    def scores(metric, *pixels):
        items = [Item(Path("a"), "", sample, reference) for sample, reference in pixels]
        return by_frame("mine", lambda *lists: [metric(*each) for each in zip(*lists, strict=True)], items)

    a, b = clip(), clip(seed=1)
    b[0] = a[0]  # a frame alike counts with the cap, not as infinite
    expected = np.mean([pixel.psnr(x, y) for x, y in zip(a, b, strict=True)])
    assert scores(pixel.psnr, (a, b)) == [expected] and expected > 20
    assert scores(pixel.ssim, (a, a)) == [pytest.approx(1.0)]
    one = pixel.psnr(a[0], b[1])
    assert scores(pixel.psnr, (a[0], b[1]), (a, b), (a[0], b[1])) == [one, expected, one]
    for x, y in ((a, b[:3]), (a, b[0]), (a[0], b)):
        with pytest.raises(UserError, match="a has [15] frames and its reference"):
            scores(pixel.psnr, (x, y))


@pytest.fixture(scope="module")
def experiments(random_pipes, tmp_path_factory):
    """nocache and spectrum on a small random Wan, through the entry's own configuration."""
    folder = tmp_path_factory.mktemp("video")
    random_pipes("wan").save_pretrained(folder / "weights")
    (folder / "prompts.txt").write_text("a small red ring moving up on a navy background\na blue star\n")
    words = [
        "model=wan1-3b",
        f"model.repo={folder}/weights",
        "model.dtype=float32",
        "model.width=64",
        "model.height=64",
        "model.num_frames=9",
        "model.arguments.max_sequence_length=20",
        f"prompt_file={folder}/prompts.txt",
        f"output_base_path={folder}/out",
        "num_inference_steps=7",
        "warmup_samples=0",
    ]
    for algo in ("nocache", "spectrum", "teacache"):
        run.main(composed(f"algo={algo}", f"exp_name={algo}", *words, config_name="video"))
    return folder / "out"


def test_a_run_makes_clips(experiments):
    records = read_records(experiments / "spectrum")
    assert len(records) == 2
    for record in records:
        file = experiments / "spectrum" / record.sample
        assert file.suffix == ".mp4" and media.read(file).shape == (9, 64, 64, 3)
        assert file.with_suffix(".preview.mp4").stat().st_size > 0
        assert record.computed_steps == [0, 1, 2, 3, 4, 6] and record.nfe == 6
        assert record.cache_bytes == 2 * 6 * 192 * 128 * 4  # two guidance branches
    config = read_experiment(experiments / "spectrum").config
    assert config["model"]["scheduler"] == {"flow_shift": 3.0} and config["model"]["fps"] == 16


def test_teacache_on_wan_computes_the_first_five_steps_and_not_always_the_last(experiments):
    records = read_records(experiments / "teacache")
    assert len(records) == 2 and all(record.computed_steps == [0, 1, 2, 3, 4] for record in records)


def test_clips_are_scored_and_shown(experiments, tmp_path):
    reference, spectrum = (read_experiment(experiments / name) for name in ("nocache", "spectrum"))
    for _, summary in evaluation.evaluate([reference, spectrum], reference):
        scores = summary["metrics"]
    mine, theirs = (e.picture(e.records[0]) for e in (spectrum, reference))
    first = (experiments / "spectrum/metrics.csv").read_text().splitlines()[1].split(",")
    assert float(first[3]) == pytest.approx(np.mean([pixel.psnr(a, b) for a, b in zip(mine, theirs, strict=True)]))
    assert scores["psnr"]["n"] == 2
    report.write_report([spectrum], reference, tmp_path / "report", rows=2)
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("data:image/webp;base64,") == 4
    uri, width = report.thumbnail(spectrum, spectrum.records[0])
    assert uri.startswith("data:image/webp") and width == 128


def test_the_page_shows_the_samples_own_pixels_in_their_pace(experiments):
    import base64
    import io

    spectrum = read_experiment(experiments / "spectrum")
    uri, _ = report.thumbnail(spectrum, spectrum.records[0])
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert shown.n_frames == 9
    for i, frame in enumerate(spectrum.picture(spectrum.records[0])):
        shown.seek(i)
        assert np.array_equal(np.asarray(shown.convert("RGB")), frame)
    assert json.loads(json.dumps(shown.info.get("duration"))) == round(1000 / 16)


def test_clips_with_loss_or_damage_are_refused(experiments, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(experiments / "spectrum", copy)
    spectrum = read_experiment(copy)
    record = spectrum.records[0]
    file = copy / record.sample
    whole = file.read_bytes()
    file.write_bytes(file.with_suffix(".preview.mp4").read_bytes())
    with pytest.raises(UserError, match="with loss"):
        spectrum.picture(record)
    for damaged in (whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged") as error:
            spectrum.picture(record)
        assert "\n" not in str(error.value)
    middle = len(whole) // 2  # ffmpeg decodes a wrong byte without a word
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(UserError, match="has changed since it was made|is damaged"):
        spectrum.picture(record)
    file.write_bytes(whole)
    assert spectrum.picture(record).shape == (9, 64, 64, 3)
    file.unlink()
    with pytest.raises(UserError, match="no sample"):
        spectrum.picture(record)


def test_frames_that_the_vae_cannot_make_are_refused():
    with pytest.raises(UserError, match="num_frames must be 1 more than a multiple of 4"):
        run.main(composed("model.num_frames=10", config_name="video"))
    other = settings("model.num_frames=19", "+model.frame_stride=6", config_name="video")  # Mochi's
    assert other.model.num_frames == 19
    with pytest.raises(UserError, match="1 more than a multiple of 6"):
        settings("model.num_frames=9", "+model.frame_stride=6", config_name="video")
