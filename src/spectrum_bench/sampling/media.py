"""Samples as files: pictures are PNG, and clips are lossless H.264 in RGB, so that metrics get the exact pixels.

`libx264rgb` at CRF 0 is lossless, and other tools (OpenCV, decord, VBench) read it exactly. Browsers cannot play it, so
there is a small copy with loss (yuv420p) for viewing.
"""

import io
import math
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.limits import MOST_PIXELS
from spectrum_bench.sampling.reading import Damaged, check_file

FILE = 2**32  # bytes of a sample's file
Pixels = NDArray[np.uint8]  # (H, W, 3) of a picture, (F, H, W, 3) of a clip

# zlib's fastest level: files grow a little, and the device waits for the encoder between samples.
PNG_LEVEL = 1

# Settings of imageio's ffmpeg plugin.
CLIP: dict[str, Any] = {
    "codec": "libx264rgb",
    "pixelformat": "rgb24",
    "output_params": ["-crf", "0", "-preset", "ultrafast"],
}
PREVIEW: dict[str, Any] = {
    "codec": "libx264",
    "pixelformat": "yuv420p",
    "output_params": ["-crf", "20", "-preset", "veryfast", "-movflags", "+faststart"],
}


@cache
def check_ffmpeg() -> None:
    """Start the ffmpeg that writes and reads clips.

    Raises:
        UserError: it does not start.
    """
    import imageio_ffmpeg

    try:
        imageio_ffmpeg.get_ffmpeg_version()
    except (OSError, RuntimeError):
        given = os.environ.get("IMAGEIO_FFMPEG_EXE")
        fix = (
            f"unset IMAGEIO_FFMPEG_EXE, which names {given}"
            if given
            else "pip install --force-reinstall imageio-ffmpeg"
        )
        raise UserError(f"ffmpeg, which writes and reads clips, does not start here: {fix}") from None


class Unreadable(UserError):
    """A sample's file cannot be compared. The message continues a sentence that begins with the file's name."""


def encode(pixels: Pixels, fps: float | None) -> dict[str, bytes]:
    """A sample's files by suffix: (H, W, 3) uint8 gives ".png"; (F, H, W, 3) gives ".mp4" and a small ".preview.mp4".

    Args:
        fps: frames a second; None for a picture.

    Raises:
        OSError: the written clip does not hold the same pixels.
    """
    if pixels.ndim == 3:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=PNG_LEVEL)
        return {".png": file.getvalue()}
    even = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), "edge")  # for yuv420p
    return {".mp4": _lossless(pixels, fps), ".preview.mp4": _video(even, fps, PREVIEW)}


def read(path: Path) -> Pixels:
    """The pixels of a sample: (H, W, 3) uint8 of a PNG file, (F, H, W, 3) of a clip.

    Raises:
        FileNotFoundError: there is no such file.
        Unreadable: the file is not an RGB PNG, is a clip coded with loss, or cannot be decoded. (H.264 has no checksum;
            a Record's sha256 shows other damage.)
        UserError: a clip, and no ffmpeg.
    """
    try:
        check_file(path, FILE)
    except Damaged as damage:
        raise Unreadable(f"is damaged ({damage})") from None
    if path.suffix != ".png":
        check_ffmpeg()
    try:
        return _read_picture(path) if path.suffix == ".png" else _read_clip(path)
    except Unreadable:
        raise
    except Exception as error:  # decoders answer to damaged files with any kind of it
        reason = str(error).split("\n")[0]
        raise Unreadable(f"is damaged ({reason})") from None


def read_input(data: bytes) -> Image.Image:
    """A picture that stands beside a prompt, RGB, of any format that Pillow reads.

    Raises:
        Unreadable: it cannot be decoded, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.width * image.height)
            return image.convert("RGB")
    except Unreadable:
        raise
    except Exception as error:  # decoders answer to damaged files with any kind of it
        raise Unreadable(f"is no picture ({str(error).splitlines()[0]})") from None


def read_input_clip(data: bytes) -> list[Image.Image]:
    """The frames of a clip that stands beside a prompt, RGB, of any coding that ffmpeg reads.

    Raises:
        Unreadable: it cannot be decoded, or has too many pixels.
        UserError: no ffmpeg.
    """
    check_ffmpeg()
    try:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:  # imageio reads bytes only once
            file.write(data)
            file.flush()
            return [Image.fromarray(frame) for frame in _frames(Path(file.name))]
    except Unreadable:
        raise
    except Exception as error:  # decoders answer to damaged files with any kind of it
        raise Unreadable(f"is no clip ({str(error).splitlines()[0]})") from None


def _check_size(pixels: float) -> None:
    """Before anything is decoded: a file of some kilobytes can stand for gigabytes."""
    if not 0 < pixels <= MOST_PIXELS:
        raise Unreadable(f"has {pixels:,.0f} pixels, more than {MOST_PIXELS:,}")


def _read_picture(path: Path) -> Pixels:
    # Pillow, because imageio accepts a JPEG that is named .png.
    with Image.open(path) as image:
        if image.format != "PNG" or image.mode != "RGB":
            raise Unreadable(f"is {image.format} {image.mode}, not RGB PNG")
        _check_size(image.width * image.height)
        return np.asarray(image)


def _read_clip(path: Path) -> Pixels:
    return np.stack(_frames(path, lossless=True))


def _frames(path: Path, lossless: bool = False) -> list[Pixels]:
    import imageio.v3 as iio  # here and below: it takes as long as all else that --help imports

    with iio.imopen(path, "r", plugin="FFMPEG") as clip:  # type: ignore[call-overload]  # its stubs know no FFMPEG
        coding = clip.metadata()["pix_fmt"]
        if lossless and not coding.startswith(("gbrp", "rgb")):
            raise Unreadable(f"is coded as {coding}, with loss, not as RGB")
        pixels = math.prod(clip.metadata()["size"])
        _check_size(pixels)
        frames = []
        for frame in clip.iter():
            frames.append(frame)
            _check_size(pixels * len(frames))
    if not frames:
        raise OSError("no frame in it")
    return frames


def _lossless(pixels: Pixels, fps: float | None) -> bytes:
    """The clip's file. It is read back, because ffmpeg's exit code does not show that the disk was full."""
    data = _video(pixels, fps, CLIP)
    if not _holds(data, pixels):
        raise OSError(f"ffmpeg could not write a whole clip: is there room in {tempfile.gettempdir()}?")
    return data


def _video(pixels: Pixels, fps: float | None, settings: dict[str, Any]) -> bytes:
    import imageio.v3 as iio

    own_size = {"macro_block_size": 1}  # otherwise frames are scaled to multiples of 16 pixels
    more = own_size | settings | {"fps": fps, "ffmpeg_log_level": "error"}
    return iio.imwrite("<bytes>", pixels, extension=".mp4", plugin="FFMPEG", **more)


def _holds(data: bytes, pixels: Pixels) -> bool:
    import imageio.v3 as iio

    try:
        return np.array_equal(iio.imread(data, extension=".mp4", plugin="FFMPEG"), pixels)
    except (OSError, RuntimeError, ValueError):
        return False
