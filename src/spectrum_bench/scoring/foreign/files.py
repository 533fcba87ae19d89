"""Reads pictures and clips of any usual format, and measures what their coding costs."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import media
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.sampling.reading import read_bytes
from spectrum_bench.scoring.foreign.pairing import CLIPS
from spectrum_bench.scoring.metrics.pixel import psnr


@dataclass
class Sample:
    """A file, decoded."""

    path: Path
    pixels: Pixels
    fps: float | None = None
    tables: dict[int, list[int]] = field(default_factory=dict)  # a JPEG's quantisation
    lossless: bool = True


def read(path: Path) -> Sample:
    """A picture or clip of any usual format, as RGB.

    Raises:
        UserError: it cannot be decoded.
    """
    try:
        return _read_clip(path) if path.suffix.lower() in CLIPS else _read_picture(path)
    except media.Unreadable as reason:
        raise UserError(f"{path} {reason}: make it again, or leave it out") from None


def _read_picture(path: Path) -> Sample:
    data = read_bytes(path, media.FILE)
    pixels = np.asarray(media.read_input(data))
    with Image.open(io.BytesIO(data)) as image:
        tables = dict(getattr(image, "quantization", None) or {}) if image.format == "JPEG" else {}
        lossless = image.format in ("PNG", "BMP", "TIFF")
    return Sample(path, pixels, tables=tables, lossless=lossless)


def _read_clip(path: Path) -> Sample:
    try:
        return Sample(path, media.read(path), fps_of(path))
    except media.Unreadable:  # coded with loss, which is right here
        media.check_ffmpeg()
    try:
        frames = np.asarray(iio.imread(path, plugin="FFMPEG"))
        return Sample(path, frames, fps_of(path), lossless=False)
    except Exception as error:  # decoders answer to damaged files with any kind of it
        raise media.Unreadable(f"is no clip ({str(error).splitlines()[0][:200]})") from None


def fps_of(path: Path) -> float:
    """Frames a second, as the file has it."""
    return float(iio.immeta(path, plugin="FFMPEG")["fps"])


def coding_loss(sample: Sample, reference: Pixels) -> float:
    """What a JPEG's coding alone costs: the PSNR in dB of the reference, coded with the tables of the sample, against
    itself."""
    stream = io.BytesIO()
    Image.fromarray(reference).save(stream, "JPEG", qtables=sample.tables, subsampling=0)
    return psnr(np.asarray(Image.open(stream).convert("RGB")), reference)
