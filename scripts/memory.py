"""Writes the table of docs/memory.md from configs/architectures, without weights and GPU: python scripts/memory.py"""

import re
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from models import models, steps
from spectrum_bench.commands.compose import build
from spectrum_bench.commands.entry import settings_from
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.architectures import FOLDER
from spectrum_bench.sampling.counting import count
from spectrum_bench.sampling.inputs import Input
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.settings import RunSettings

PAGE = ROOT / "docs" / "memory.md"
CARDS = (12, 16, 24, 48, 80)  # GB
HEAD = ("`model=`", "size", "steps", "weights", "other tensors", "cache of Spectrum", "uncached fits", "Spectrum fits")
SMALLER = {  # a size below the model's own that people run on smaller cards
    "hunyuan": ("model.num_frames=33",),
    "hunyuan1-5": ("model.num_frames=61",),
    "wan14b": ("model.num_frames=33",),
    "wan2-1-i2v": ("model.num_frames=33",),
    "wan2-2-i2v": ("model.width=832", "model.height=480", "model.num_frames=33"),
    "wan2-2-t2v": ("model.width=832", "model.height=480", "model.num_frames=33"),
    "wan2-2-ti2v": ("model.width=832", "model.height=480", "model.num_frames=81"),
}


def row(model: str, words: tuple[str, ...]) -> list[str]:
    """The cells of a model at a size."""
    config = "video" if "num_frames" in (ROOT / f"configs/model/{model}.yaml").read_text(encoding="utf-8") else "base"
    number = f"num_inference_steps={steps(models()[model])}"
    uncached, spectrum = (
        settings(config, f"model={model}", f"algo={algo}", number, *words) for algo in ("nocache", "spectrum")
    )
    with tempfile.TemporaryDirectory() as folder:
        plain, cached = (count(each, build(each), job(each, Path(folder))) for each in (uncached, spectrum))
    sizes = [plain.weights_bytes, plain.working_bytes, cached.cache_bytes or 0]
    made = uncached.model
    size = f"{made.width} x {made.height}" + (f", {made.num_frames} frames" if made.num_frames else "")
    cells = [str(uncached.num_inference_steps), *(f"{each / 1e9:.1f} GB" for each in sizes)]
    return [f"`{model}`", size, *cells, smallest(plain.peak_bytes), smallest(cached.peak_bytes)]


def job(of: RunSettings, folder: Path) -> Job:
    """A prompt, and a picture of the model's own size if it needs one, as a file in the folder."""
    picture = folder / "picture.png"
    Image.new("RGB", (of.model.width, of.model.height)).save(picture)
    inputs = tuple(Input(name, picture, sha256="") for name in of.model.needs or ())
    return Job("", 0, "a red ring", 0, inputs)


def settings(config: str, *words: str) -> RunSettings:
    return settings_from(config, ["model.init=random", *words])


def smallest(peak: int | None) -> str:
    """The smallest card that holds so many bytes."""
    return next((f"{card} GB" for card in CARDS if peak is not None and peak <= card * 1e9), "no card of these")


def table() -> str:
    """The table of all models that have an architecture."""
    models = sorted(path.stem for path in FOLDER.glob("*.json"))
    sizes = [(model, words) for model in models for words in ((), SMALLER.get(model)) if words is not None]
    lines = [list(HEAD), ["---"] * len(HEAD), *(row(*each) for each in sizes)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def page(text: str) -> str:
    """The page with a new table between its marks."""
    return re.sub(r"(?<=-->\n).*?(?=\n<!-- end)", lambda _: table(), text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
