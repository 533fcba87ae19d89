"""Score the samples of one or more experiments against a reference run.

usage: python src/evaluate.py <experiment dir> [<experiment dir> ...] reference=<dir> [metrics=psnr,clip]
       python src/evaluate.py --check

  <experiment dir>  a folder that a run has made: config.yaml, records.jsonl, samples/; or a folder of such
  reference=<dir>   the run to measure against: same model, prompts and seed, every step computed: algo=nocache
  metrics=...       which ones; left out: those that the model's configuration names
  --check           say of each metric whether all that it needs is here, and what to type if not

Writes into each experiment directory
  metrics.csv       one row a sample: id prompt_index seed, each metric, its parts, and the reference's own score where
                    a metric has one; blank where it could not be computed
  summary.json      means with 95 % bootstrap intervals over prompts, sanity anchors, versions
"""

from pathlib import Path

from spectrum_bench.commands import words as arguments
from spectrum_bench.errors import UserError

OPTIONS = {"reference": None, "metrics": ""}


def main(argv: list[str]) -> None:
    if argv == ["--check"]:
        return check()
    folders, options = arguments.parse(argv, __doc__, OPTIONS)
    from spectrum_bench.scoring.experiments import check_reference, find_experiments, pairs, read_experiment

    reference = read_experiment(Path(options["reference"]))
    experiments = [read_experiment(folder) for folder in find_experiments(folders)]
    for experiment in experiments:  # all of them before the first is scored
        check_reference(experiment, reference)
        pairs(experiment, reference)
    from spectrum_bench.scoring.evaluation import evaluate
    from spectrum_bench.scoring.metrics import chosen

    for experiment in experiments:
        try:
            chosen(experiment.config, options["metrics"])
        except ValueError as error:
            raise UserError(f"metrics={options['metrics']}: {error}") from None
    said = set()
    for experiment, summary in zip(experiments, evaluate(experiments, reference, options["metrics"]), strict=True):
        same = summary["identical_pairs"]
        print(f"{experiment.folder}: {summary['samples']} samples, {same} identical to the reference")
        for line in describe(summary):
            if line not in said or "%" in line:  # what holds for all of them is said once
                print(f"  {line}")
            said.add(line)


def check() -> None:
    """One line a metric: ready, or what is missing and what to type."""
    from spectrum_bench.errors import MetricUnavailable
    from spectrum_bench.scoring.metrics import METRICS
    from spectrum_bench.scoring.metrics.isolated import is_made

    for name, metric in METRICS.items():
        config = {"model": {"judge": "assets/tiny/flux/judge"} | ({"fps": 16} if "vbench" in name else {})}
        try:
            metric.scorer(config)
        except MetricUnavailable as reason:
            print(f"—      {reason}")
            continue
        made = metric.kind != "batch" or is_made(name.removesuffix("_standard"))
        print(f"ready  {name}" + ("" if made else ": its environment will be made on first use, some gigabytes"))


def describe(summary: dict) -> list[str]:
    """One experiment's scores, a line each."""
    lines, left = [], summary["unpaired"]
    if any(left.values()):
        lines.append(f"left out: {left['experiment']} samples and {left['reference']} references without a partner")
    for name, found in summary["metrics"].items():
        if "unavailable" in found:
            lines.append(f"—  {found['unavailable']}")
            continue
        low_high = found["interval"]
        span = f"95 % in [{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else "no 95 % interval"
        lines.append(f"{name:8} {found['mean']:.4g} {found['unit']}  ({span}, {found['n']} prompts)")
    for anchor, values in summary["anchors"].items():
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items()) if values else "n/a, one prompt only"
        lines.append(f"sanity, reference against {'shuffled prompts' if anchor == 'shuffled' else 'itself'}: {text}")
    return lines
