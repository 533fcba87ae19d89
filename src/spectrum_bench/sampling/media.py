"""Samples as files: pictures are PNG, clips lossless H.264 in RGB; what is compared is never coded with loss.

`libx264rgb` at CRF 0 keeps every bit, and other tools (OpenCV, decord, VBench) read it exactly. Browsers do not play
it: a small copy with loss (yuv420p) is for looking at.
"""

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

LOSSLESS = ["-crf", "0", "-preset", "ultrafast"]
FOR_LOOKING = ["-crf", "20", "-preset", "veryfast", "-movflags", "+faststart"]


def encode(pixels: np.ndarray, fps: int | None) -> dict[str, bytes]:
    """A sample's files by suffix: (H, W, 3) uint8 gives ".png"; (F, H, W, 3) ".mp4" and a small ".preview.mp4".

    Raises:
        OSError: the clip, read again, is not what it was made from.
    """
    if pixels.ndim == 3:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        return {".png": file.getvalue()}
    even = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), "edge")  # yuv420p
    return {
        ".mp4": _video(pixels, fps, "libx264rgb", "rgb24", LOSSLESS),
        ".preview.mp4": _video(even, fps, "libx264", "yuv420p", FOR_LOOKING),
    }


def _video(pixels: np.ndarray, fps: int, codec: str, pixel_format: str, options: list[str]) -> bytes:
    import imageio_ffmpeg

    frames, height, width, _ = pixels.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        writer = imageio_ffmpeg.write_frames(
            str(path),
            (width, height),
            fps=fps,
            codec=codec,
            pix_fmt_in="rgb24",
            pix_fmt_out=pixel_format,
            output_params=options,
            macro_block_size=1,
            ffmpeg_log_level="error",
        )
        writer.send(None)
        for frame in np.ascontiguousarray(pixels):
            writer.send(frame)
        writer.close()  # which says nothing of what ffmpeg could not write
        if options is LOSSLESS and not _holds(path, pixels):
            raise OSError(f"ffmpeg could not write a whole clip: is there room in {tempfile.gettempdir()}?")
        return path.read_bytes()


def _holds(path: Path, pixels: np.ndarray) -> bool:
    try:
        return np.array_equal(read(path), pixels)
    except (OSError, RuntimeError, ValueError):
        return False


def read(path: Path) -> np.ndarray:
    """The pixels of a sample: (H, W, 3) uint8 of a PNG file, (F, H, W, 3) of a clip.

    Raises:
        ValueError: not RGB PNG, or a clip coded with loss.
        OSError, SyntaxError, RuntimeError: missing, or damaged so that it cannot be decoded. (H.264 has no checksum:
            that is what a Record's sha256 is for.)
    """
    if path.suffix == ".png":
        with Image.open(path) as image:
            if image.format != "PNG" or image.mode != "RGB":
                raise ValueError(f"is {image.format} {image.mode}, not RGB PNG")
            return np.asarray(image)
    import imageio_ffmpeg

    path.stat()
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    facts = next(reader)
    if not facts["pix_fmt"].startswith(("gbrp", "rgb")):
        raise ValueError(f"is coded as {facts['pix_fmt']}, with loss, not as RGB")
    width, height = facts["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    if not frames:
        raise OSError("no frame in it")
    return np.stack(frames)
