"""The jobs that sample prompts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from spectrum_bench.errors import UserError
from spectrum_bench.sampling.identity import Identity, sample_id
from spectrum_bench.sampling.inputs import Input, hashes
from spectrum_bench.sampling.limits import MOST_JOBS
from spectrum_bench.sampling.prompts import Prompt


@dataclass(frozen=True)
class Job:
    """One sample to make. `id` is a hash of everything that decides its pixels."""

    id: str
    prompt_index: int  # line in the prompt file, from 0, empty lines not counted
    prompt: str
    seed: int
    inputs: tuple[Input, ...] = ()  # that the pipeline takes beside the prompt
    target_caption: str | None = None  # for metrics; it decides no pixel


def make_jobs(prompts: Sequence[Prompt], seed: int, who: Identity, samples: int = 1) -> list[Job]:
    """`samples` jobs for each prompt, with its own seed or `seed`, and the next ones. All prompts with the first seed
    come first.

    A repeated prompt gets its own id from the number of times that it came before.

    Args:
        who: the settings that decide pixels, from `identity`.

    Raises:
        UserError: more samples than anybody makes in one run.
    """
    if len(prompts) * samples > MOST_JOBS:
        raise UserError(f"{len(prompts)} prompts times {samples} are more than {MOST_JOBS:,} samples: take fewer")
    jobs: list[Job] = []
    before: Counter[Prompt] = Counter()
    for sample in range(samples):
        for index, prompt in enumerate(prompts):
            each = sample + (seed if prompt.seed is None else prompt.seed)
            own = {**who, "pictures": hashes(prompt.inputs)} if prompt.inputs else who  # their name in ids
            seeded = replace(prompt, seed=each, target_caption=None)
            job_id = sample_id(own, prompt.text, each, before[seeded])
            jobs.append(Job(job_id, index, prompt.text, each, prompt.inputs, prompt.target_caption))
            before[seeded] += 1
    return jobs
