"""try: a method's scores in one command, beside others with as many passes.

usage: python src/try.py algo=<name> [key=value ...]

  algo=<name>          the method; its keys, schedule= and site= as text_to_image.py takes them
  model=tiny-flux      the model
  total_prompt_num=8   prompts of the model's list
  out=<folder>         where samples, scores and the report go; by default output_samples_try/<model>/<algo>

Samples the model without caching and under the method, reads how many passes a sample has taken, and samples fewer
steps, reuse, order-1 Taylor, Spectrum and Hindsight with as many. Then it scores all, and prints the table. Other keys
go to every run: seed=7 num_inference_steps=28 device=cpu ... Finished samples are not made again; a method of changed
constants needs another out=.
"""

from pathlib import Path
from statistics import mean

from spectrum_bench.commands import report, rows
from spectrum_bench.commands.compose import UPSTREAM
from spectrum_bench.commands.entry import readable
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.records import read_records

OF_A_METHOD = ("algo", "schedule", "site", "correct", "history", *UPSTREAM)  # keys, and what stands before their dots
REFERENCE = rows.Line("nocache", ["algo=nocache"])


def main(argv: list[str]) -> None:
    """Sample, score and report.

    Raises:
        UserError: no method is named, a word is wrong, or a run failed.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print((__doc__ or "").strip())
        return
    given = readable(argv)
    method = [word for word in given if key_of(word) in OF_A_METHOD]
    algo = next((word.removeprefix("algo=") for word in method if word.startswith("algo=")), None)
    if not algo or algo == "nocache":
        raise UserError("name the method to try: algo=<name>; spectrum-bench list algos names all")
    options = dict(word.split("=", 1) for word in given if "=" in word)
    if "output_base_path" in options:
        raise UserError("output_base_path= is for single runs: out=<folder> says where all of these go")
    model = options.get("model", "tiny-flux")
    out = Path(options.get("out", f"output_samples_try/{model}/{algo}"))
    if not options.get("out", "folder") or out.exists() and not out.is_dir():
        raise UserError(f"out={options['out'][:80]} is no folder: name one")
    common = [word for word in given if word not in method and key_of(word) not in ("out", "total_prompt_num")]
    common += [f"total_prompt_num={options.get('total_prompt_num', 8)}", f"output_base_path={out}"]
    rows.make([rows.Line(algo, method), REFERENCE], common)
    steps, taken = (mean(record.nfe for record in read_records(out / name)) for name in (REFERENCE.name, algo))
    passes = round(taken)
    others = beside(passes) if 1 < passes < steps else []
    rows.make([each for each in others if each.name != algo], common)
    show(out, algo, [algo, *(each.name for each in others if each.name != algo)])


def key_of(word: str) -> str:
    """The key of a word, up to its first dot."""
    return word.partition("=")[0].lstrip("+").partition(".")[0]


def beside(passes: int) -> list[rows.Line]:
    """What a method is compared with: nothing, reuse and published forecasts at steps with even gaps, and Hindsight."""
    even = ["schedule=power_law", f"schedule.passes={passes}", "schedule.power=1"]
    return [
        rows.Line("steps", ["algo=steps", f"num_inference_steps={passes}"]),
        rows.Line("reuse-even", ["algo=reuse", *even]),
        rows.Line("taylor1-even", ["algo=taylorseer", "site=last_block", *even]),
        rows.Line("spectrum-even", ["algo=spectrum", "algo.w=0.5", *even]),
        rows.Line("hindsight", ["algo=hindsight", f"algo.passes={passes}"]),
    ]


def show(out: Path, algo: str, names: list[str]) -> None:
    """Score the runs, and print their table."""
    from spectrum_bench.scoring.evaluation import evaluate
    from spectrum_bench.scoring.experiments import read_experiment

    reference = read_experiment(out / REFERENCE.name)
    for _ in evaluate([read_experiment(out / name) for name in names], reference, ""):
        pass
    folders = [str(out / name) for name in names]
    report.main([*folders, f"reference={out / REFERENCE.name}", f"out={out / 'report'}", f"baseline={algo}"])
