"""Samples on a page: their scores in words, and their pixels as data URIs. A page with thousands of them still
opens."""

import base64
import io
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spectrum_bench.reporting.rows import Row
from spectrum_bench.sampling.records import Record
from spectrum_bench.scoring.experiments import Experiment

THUMBNAIL = 256  # px; larger samples are reduced and coded with loss
EXACT, LOSSY = 2**24, 2**26  # most pixels of all pictures on a page, without and with loss: about 50 MB either way


@dataclass(frozen=True)
class Picture:
    """One sample on the page."""

    key: str
    title: str  # name and passes of the row
    role: str
    words: str  # the scores
    width: int  # in CSS pixels
    uri: str | None  # None: the first picture with this key holds the pixels


class Gallery:
    """The samples of one page. The pixels of each sample are on the page only once."""

    def __init__(self, rows: list[Row], count: int) -> None:
        """`count` is the number of pictures that the page will show of samples of `rows`."""
        self.rows, self.count = rows, count
        self._pictures: dict[tuple[int, int], Picture] = {}

    def picture(self, row: int, sample: int) -> Picture:
        if (row, sample) in self._pictures:
            return replace(self._pictures[row, sample], uri=None)
        self._pictures[row, sample] = self._draw(row, sample)
        return self._pictures[row, sample]

    def _draw(self, index: int, sample: int) -> Picture:
        row = self.rows[index]
        uri, width = thumbnail(row.experiment, row.records[sample], self.count)
        return Picture(f"{index}-{sample}", f"{row.name} {row.passes}", row.role, in_words(row, sample), width, uri)


def in_words(row: Row, sample: int) -> str:
    """The scores of one sample in words: 31.2 dB, and whether it shows its caption."""
    psnr, caption = (row.scores[name][sample] if name in row.scores else math.nan for name in ("psnr", "caption"))
    words = []
    if not math.isnan(psnr):
        words.append("identical" if row.scores["identical"][sample] else f"{psnr:.1f} dB")
    if not math.isnan(caption):
        words.append("caption ✓" if caption else "caption ✗")
    return " · ".join(words)


def exact(frames: NDArray[np.uint8], count: int) -> bool:
    """Whether the page shows `count` samples like this one, (..., H, W, 3), in their own pixels."""
    height, width = frames.shape[-3:-1]
    return max(height, width) <= THUMBNAIL and count * frames.size // 3 <= EXACT


def thumbnail(experiment: Experiment, record: Record, count: int = 1) -> tuple[str, int]:
    """(data URI, width in CSS pixels) of a sample, one of `count` on a page: see `coded`."""
    return coded(experiment.picture(record), count, experiment.model.get("fps"))


def coded(frames: NDArray[np.uint8], count: int, fps: float | None = None) -> tuple[str, int]:
    """(data URI, width in CSS pixels) of a picture (H, W, 3) or a clip (F, H, W, 3), one of `count` on a page.

    One of up to 256 px keeps its own pixels, unless `count` such pictures are too large for a page. Others are reduced
    and coded with loss; the more pictures a page has, the smaller they are. Small pictures are shown at twice their
    size. A clip becomes an animated WebP, which every browser plays as a picture.
    """
    images = [Image.fromarray(frame) for frame in (frames if frames.ndim == 4 else [frames])]
    lossless = exact(frames, count)
    if not lossless:
        weight = count * max(1, (len(images) - 1) / 4)  # the codec predicts a clip's frames from each other
        side = min(THUMBNAIL, int(math.sqrt(LOSSY / weight)))
        for image in images:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind, data = _file(images, lossless, fps)
    width = images[0].width * (2 if max(images[0].size) <= THUMBNAIL // 2 else 1)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", width


def _file(images: list[Image.Image], lossless: bool, fps: float | None) -> tuple[str, bytes]:
    """(kind of file, its bytes): PNG or JPEG of a picture, WebP of a clip."""
    first, *others = images
    how: dict[str, Any]
    if others:
        assert fps is not None
        pace = round(1000 / fps)
        kind, how = "webp", {"lossless": lossless, "save_all": True, "append_images": others, "duration": pace}
        how |= {"quality": 80, "loop": 0}
    else:
        kind, how = ("png", {"optimize": True}) if lossless else ("jpeg", {"quality": 85})
    stream = io.BytesIO()
    first.save(stream, kind.upper(), **how)
    return kind, stream.getvalue()
