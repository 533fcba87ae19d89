"""Whether samples that other code made are compared with their own references: pairs are nearer than strangers."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.media import Pixels
from spectrum_bench.scoring.experiments import Experiment
from spectrum_bench.scoring.stats import derangement

SIDE = 16  # px of the thumbnails that are compared


def check_pairs(experiment: Experiment, reference: Experiment) -> list[str]:
    """Compare thumbnails of each sample with those of all references: pairs must be nearer than strangers.

    Returns:
        Notes on samples to which another reference is much nearer than their own.

    Raises:
        UserError: pairs differ in size, or are no nearer than strangers.
    """
    keys = sorted(experiment.by_key.keys() & reference.by_key.keys())
    if not keys:
        raise UserError(f"{experiment.name} and {reference.name} have no sample in common: say how files pair with by=")
    own, theirs = [], []
    for key in keys:
        pixels, target = experiment.picture(experiment.by_key[key]), reference.picture(reference.by_key[key])
        if pixels.shape != target.shape:
            raise UserError(
                f"sample {key[0]} of {experiment.name} is {_size(pixels)} and its reference {_size(target)}: make both "
                "in one size"
            )
        own.append(_thumbnail(pixels))
        theirs.append(_thumbnail(target))
    references = np.stack(theirs)
    distances = np.array([np.linalg.norm(references - each, axis=1) for each in own])
    paired = np.diagonal(distances)
    strangers = derangement([key[0] for key in keys])
    if strangers is not None:
        nearer = float(np.mean(paired < distances[np.arange(len(keys)), strangers]))
        if nearer < 0.75:
            raise UserError(
                f"{experiment.name}: only {100 * nearer:.0f} % of the samples are nearer to their reference than to "
                "another one, and half would be chance: the files pair otherwise, say how with by="
            )
    strange = [key for key, row, mine in zip(keys, distances, paired, strict=True) if row.min() < 0.5 * mine]
    if not strange:
        return []
    prompts = ", ".join(experiment.by_key[key].prompt[:40] for key in strange[:3])
    return [f"{experiment.name}: {len(strange)} samples are much nearer to another reference ({prompts})."]


def _thumbnail(pixels: Pixels) -> NDArray[np.float64]:
    """(SIDE * SIDE,) grey, of a clip its middle frame."""
    frame = pixels if pixels.ndim == 3 else pixels[len(pixels) // 2]
    grey = Image.fromarray(frame).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float64).ravel()


def _size(pixels: Pixels) -> str:
    height, width = pixels.shape[-3:-1]
    return f"{width}x{height}" + (f", {len(pixels)} frames" if pixels.ndim == 4 else "")
