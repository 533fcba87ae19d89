"""GenEval (Ghosh, Hajishirzi and Schmidt 2023, arXiv:2310.11513): does a picture show the things that its prompt names,
so many, of that colour, and where it says? `geneval_rules.py` has the prompts and rules, `detector.py` the networks."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling.catalogue import HubEntry
from spectrum_bench.sampling.media import Pixels, read
from spectrum_bench.scoring.metrics import clip
from spectrum_bench.scoring.metrics.contracts import FilesScorer, ModelFacts, Scores
from spectrum_bench.scoring.metrics.geneval_rules import TASKS, Asked, Found, parse, shows
from spectrum_bench.scoring.metrics.hub import fetched

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
# Of the detector no checksum is known: download.py --dry-run prints the commit and the checksum to be written here.
WEIGHTS = {
    "geneval": (
        *(HubEntry(DETECTOR, file) for file in ("model.safetensors", "config.json", "preprocessor_config.json")),
        *clip.WEIGHTS["clip"],
    )
}
DETAILS = tuple(f"geneval_{task}" for task in TASKS)


def make_geneval(model: ModelFacts) -> FilesScorer:
    """Scores with Mask2Former and CLIP."""
    detector, files = WEIGHTS["geneval"][:3], fetched("geneval", WEIGHTS["geneval"][3:])
    folder = fetched("geneval", detector)[0].parent

    from spectrum_bench.scoring.metrics import detector as networks

    return scorer(networks.load(folder), networks.load_colours("ViT-L-14-quickgelu", files[0]))


def scorer(
    detect: Callable[[Pixels], Mapping[str, Sequence[Found]]],
    colours: Callable[[Pixels, Sequence[Found], str], list[str]],
) -> FilesScorer:
    """The scorer with functions that find things in a picture, and their colours."""
    known: dict[Path, bool] = {}  # an evaluation asks for the reference's once for each experiment

    def right(path: Path, asked: tuple[str, tuple[Asked, ...]]) -> bool:
        if path not in known:
            picture = read(path)
            known[path] = shows(*asked, detect(picture), lambda things, name: colours(picture, things, name))
        return known[path]

    def score(items: Sequence[tuple[Path, str]]) -> list[Scores]:
        asked = [parse(prompt) for _, prompt in items]
        tasks = [each[0] if each else None for each in asked]
        check_whole(tasks)
        return by_task(
            tasks, [each is not None and right(path, each) for (path, _), each in zip(items, asked, strict=True)]
        )

    return score


def check_whole(tasks: Sequence[str | None]) -> None:
    """
    Raises:
        MetricUnavailable: one of the six tasks has no picture.
    """
    if absent := [task for task in TASKS if task not in tasks]:
        reason = f"no picture of GenEval's prompts for {', '.join(absent)}"
        raise MetricUnavailable("geneval", reason, "python download.py prompts=geneval, and all of them")


def by_task(tasks: Sequence[str | None], correct: Sequence[bool]) -> list[Scores]:
    """A picture's scores: whether it is right in its own task, and its part in GenEval's score, which is the mean over
    tasks. For that, a task counts N / (6 N_t) times on each of its N_t pictures of N. nan where a prompt is none of
    GenEval's."""
    counts, rows = Counter(task for task in tasks if task), []
    for task, right in zip(tasks, correct, strict=True):
        row = dict.fromkeys(("geneval", *DETAILS), math.nan)
        if task:
            weight = counts.total() / (len(TASKS) * counts[task])
            row |= {"geneval": weight * right, f"geneval_{task}": float(right)}
        rows.append(row)
    return rows
