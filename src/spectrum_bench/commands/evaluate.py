"""Score the samples of one or more experiments against a reference run.

usage: python src/evaluate.py <experiment dir> [<experiment dir> ...] reference=<dir> [metrics=psnr,clip]
       python src/evaluate.py --check

  <experiment dir>  a folder that a run has made (config.yaml, records.jsonl, samples/), or a folder of such folders
                    (folders of pictures or clips that other code made are handed to src/score.py, which has more keys)
  reference=<dir>   the run to compare with: the same model, prompts and seed, every step computed (algo=nocache)
  metrics=...       metrics to compute; by default those that the model's configuration lists
                    metrics=as:freqca (or as:taylorseer, as:teacache, as:spectrum, as:toca) takes those that come
                    nearest to the paper's tables, and says what still differs
  --check           print for each metric whether it is ready, what to type if it is not, and where its weights are
                    here its score of drawn pixels, to compare with another machine's

Writes into each experiment directory
  metrics.csv       one row a sample: id prompt_index seed, each metric with its details, and the reference's own score
                    if the metric has one; blank if a score could not be computed
  summary.json      means with 95 % bootstrap intervals over prompts, sanity anchors, versions
"""

from contextlib import suppress
from pathlib import Path

from spectrum_bench.commands import score
from spectrum_bench.commands import words as arguments
from spectrum_bench.commands.ending import say
from spectrum_bench.errors import UserError

OPTIONS = {"reference": None, "metrics": ""}


def main(argv: list[str]) -> None:
    if argv == ["--check"]:
        return check()
    folders, options = arguments.parse(argv, __doc__, OPTIONS)
    if all(map(made_elsewhere, [*folders, Path(options["reference"])])):
        return score.main(argv)
    from spectrum_bench.scoring.experiments import check_reference, find_experiments, pairs, read_experiment

    experiments = [read_experiment(folder) for folder in find_experiments(folders)]
    reference = read_experiment(Path(options["reference"]))
    for experiment in experiments:  # check all of them before the first is scored
        check_reference(experiment, reference)
        pairs(experiment, reference)
    from spectrum_bench.scoring.evaluation import evaluate
    from spectrum_bench.scoring.metrics import chosen, papers
    from spectrum_bench.scoring.summary import describe

    for experiment in experiments:
        chosen(experiment.facts, options["metrics"])
    for line in papers.describe(options["metrics"], clips=bool(experiments[0].facts.fps)):
        say(line)
    printed: set[str] = set()
    for experiment, summary in evaluate(experiments, reference, options["metrics"]):
        same = summary["identical_pairs"]
        say(f"{experiment.folder}: {summary['samples']} samples, {same} identical to the reference")
        for line in describe(summary):
            if line not in printed or "%" in line:  # lines that all experiments share are printed once
                say(f"  {line}")
            printed.add(line)


def made_elsewhere(folder: Path) -> bool:
    """Whether a folder holds pictures or clips, and no run of ours."""
    from spectrum_bench.scoring.experiments import runs_in
    from spectrum_bench.scoring.foreign.pairing import find

    with suppress(UserError):
        return not runs_in(folder)
    with suppress(UserError):
        return bool(find(folder))
    return False


def check() -> None:
    """Print a line for each metric: that it is ready, or what is missing and what to type."""
    from spectrum_bench.scoring.readiness import readiness

    for line in readiness():
        print(line)
