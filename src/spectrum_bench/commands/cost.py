"""cost: count what a sample computes and holds, without weights and without a GPU."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from spectrum_bench.checks import number, whole
from spectrum_bench.commands.compose import build, settings_of
from spectrum_bench.paths import locate
from spectrum_bench.sampling.prompts import read_prompt_file, require
from spectrum_bench.sampling.settings import RunSettings

if TYPE_CHECKING:
    from spectrum_bench.sampling.cost import Cost


def main(cfg: DictConfig) -> None:
    """Print the cost of a sample.

    Raises:
        UserError: the algorithm does not fit the model, or weights and cache do not fit `card` GB.
    """
    settings = settings_of(cfg)
    T = settings.num_inference_steps
    passes = None if cfg.passes is None else whole("passes", cfg.passes, 1, T)
    if cfg.card is not None:
        number("card", cfg.card, 0.1, 1e6)
    algorithm = build(settings)
    from spectrum_bench.sampling.cost import lines, of_each
    from spectrum_bench.sampling.counting import count
    from spectrum_bench.sampling.identity import headline, labels
    from spectrum_bench.sampling.jobs import make_jobs

    prompts = read_prompt_file(locate(settings.prompt_file), 1, settings.prompt_column)
    require(prompts, settings.model.needs or (), settings.model.name)
    cost = count(settings, algorithm, make_jobs(prompts.lines, settings.seed, {})[0], passes)
    planned = algorithm.computed_steps(T, cost.starts)
    print(headline(settings.model.name, labels(settings)), size_of(settings), sep=", ")
    if planned is None and passes is None and cost.skipped_steps:
        print(f"which of {T} steps are computed is decided on the way: passes=14 counts with 14 of them")
    computed = spread(passes, T) if planned is None else planned
    if computed is not None:
        each = of_each(computed, cost.starts)
        print(f"{len(computed)} of {T} steps computed{each}, {T / len(computed):.2f}x fewer")
    print("\n".join(lines(cost, computed, T)))
    if cfg.card is not None:
        fit(cost, cfg.card)


def fit(cost: "Cost", card: float) -> None:
    """Tell whether a sample fits a card of so many GB.

    Raises:
        UserError: not even weights and cache do.
    """
    from spectrum_bench.sampling.cost import check_memory

    check_memory(cost, int(card * 1e9), "the card")
    tight = cost.peak_bytes is not None and cost.peak_bytes > card * 1e9
    print(f"weights and cache fit {card:g} GB" + (", the denoiser's other tensors do not" if tight else ""))


def spread(passes: int | None, T: int) -> Sequence[int] | None:
    """So many computed steps at even distances, for a sum over steps; None if their number is unknown."""
    return None if passes is None else [step * T // passes for step in range(passes)]


def size_of(settings: RunSettings) -> str:
    """The size of a sample in words."""
    model = settings.model
    frames = f", {model.num_frames} frames" if model.num_frames is not None else ""
    return f"{model.width} x {model.height}{frames}, {settings.num_inference_steps} steps, {model.dtype}"
