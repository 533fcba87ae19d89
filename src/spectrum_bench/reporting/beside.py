"""The pictures that stood beside the prompts of a run, for a page. A run keeps their hashes alone: the pictures are
read from its prompt file, as long as that is there and has the same ones."""

import numpy as np

from spectrum_bench.errors import UserError
from spectrum_bench.paths import locate
from spectrum_bench.reporting.pictures import coded
from spectrum_bench.sampling.inputs import KINDS, PICTURE, Input
from spectrum_bench.sampling.prompts import read_prompt_file
from spectrum_bench.sampling.records import Record
from spectrum_bench.scoring.experiments import Experiment

Shown = tuple[str, str, int]  # the argument of the pipeline's call, data URI, width in CSS pixels


class Beside:
    """The pictures beside the prompts of a run."""

    def __init__(self, experiment: Experiment, count: int) -> None:
        """`count` is the number of pictures that the page will show."""
        self._count, self._inputs = count, {}
        given = any(record.inputs for record in experiment.records)
        for each in _inputs(experiment) if given else ():
            self._inputs[each.name, each.sha256] = each

    def of(self, record: Record) -> list[Shown]:
        """Those of one sample; none that is not to be found."""
        found = [self._inputs[key] for key in record.inputs.items() if key in self._inputs]
        return [(each.name, *coded(np.asarray(each.value()), self._count)) for each in found]


def _inputs(experiment: Experiment) -> list[Input]:
    try:
        prompts = read_prompt_file(locate(experiment.config["prompt_file"]), column=experiment.config["prompt_column"])
    except (UserError, KeyError):
        return []
    return [each for prompt in prompts.lines for each in prompt.inputs if KINDS[each.name] is PICTURE]
