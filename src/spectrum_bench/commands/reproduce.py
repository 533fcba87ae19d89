"""Run a table or figure of the Spectrum paper, and put the paper's numbers beside ours.

usage: python src/reproduce.py                                    list them, with their cost in GPU hours
       python src/reproduce.py table1_flux                        as the paper has it
       python src/reproduce.py table1_flux model=tiny-flux total_prompt_num=8 [key=value ...]

  model=...             another model than the paper's; a miniature needs no GPU
  out=...               folder of the samples; by default output_samples_paper/<experiment>/<model>
  report=...            folder of reports: report=results writes results/<model>/<experiment>; by default they lie
                        beside the samples
  rows=6                most prompts that the page shows pictures of
  key=value             other keys go to every run: total_prompt_num=8 ngpu=2 device=cpu ...

Finished samples are not made again: after an interruption the same command goes on.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from spectrum_bench.commands import words as arguments
from spectrum_bench.errors import SOME_FAILED, UserError
from spectrum_bench.paths import environment_with_package
from spectrum_bench.sampling import reading
from spectrum_bench.sampling.reading import Damaged, check, parse_json, read_text
from spectrum_bench.sampling.records import write_atomically

if TYPE_CHECKING:
    from spectrum_bench.reporting.paper import Plan, Run

THRESHOLDS = "thresholds.json"  # in the folder of an experiment's runs


def main(argv: list[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return
    from spectrum_bench.reporting.paper import names, output_folder, read_plans

    experiments = [word for word in argv if "=" not in word]
    words = dict(word.split("=", 1) for word in argv if "=" in word)
    model, out, report = (words.pop(key, None) for key in ("model", "out", "report"))
    rows = arguments.count("rows", words.pop("rows", "6"))
    if not experiments:
        show_list([plan for name in names() for plan in read_plans(name, model)])
        return
    plans = [plan for name in experiments for plan in read_plans(name, model)]
    for plan in plans:
        check_words(plan, words)
    troubles = []
    for plan in plans:
        folder = Path(out or "output_samples_paper") / plan.name / plan.model
        place = (
            output_folder(plan, Path(report)) if report else folder / "report"
        )  # a trial replaces no published table
        try:
            run_and_show(plan, folder, place, [f"{key}={value}" for key, value in words.items()], rows)
        except UserError as error:  # the other experiments go on
            troubles.append(str(error))
    if troubles:
        raise UserError("; ".join(troubles))


def show_list(plans: Sequence["Plan"]) -> None:
    """Print a line an experiment, and how to run one without a GPU."""
    print(f"{'experiment':20} {'model':26} cost  miniature")
    for plan in plans:
        cost = f"{plan.gpu_hours:6g} GPU hours" if plan.prompt_file else 16 * " "  # of the paper's own model
        runs = f"{plan.name:20} {plan.model:10} {len(plan.runs):3} runs"
        print(f"{runs}  {cost}  {plan.miniature or '':12}  {plan.title}")
    print(
        "The miniature stands for it on a CPU: python src/reproduce.py table1_flux model=tiny-flux total_prompt_num=8"
    )


def run_and_show(plan: "Plan", folder: Path, report: Path, extra: list[str], rows: int) -> None:
    """Run an experiment, and write its report.

    Raises:
        UserError: some runs failed, or the report cannot be written.
    """
    from spectrum_bench.scoring.experiments import has_samples

    failed = run(plan, folder, extra)
    failed += [run.name for run in plan.runs if run.name not in failed and not has_samples(folder / run.name)]
    if plan.runs[0].name in failed:
        raise UserError(f"{plan.name}: the reference has no sample: see {folder / plan.runs[0].name}/failures")
    show(plan, folder, report, failed, rows)


def check_words(plan: "Plan", words: dict[str, str]) -> None:
    """Refuse keys that would make the rows equal, or hide them from the report.

    Raises:
        UserError: there is such a key.
    """
    common = set.intersection(*(set(run.words) for run in plan.runs))
    own = {word.split("=")[0] for run in plan.runs for word in run.words if word not in common}
    for key in words:
        if key in own:
            raise UserError(f"{key}= is what sets {plan.name}'s rows apart: change configs/experiment/{plan.name}.yaml")
        if key in ("output_base_path", "exp_name"):
            raise UserError(f"{key}= is the experiment's own: out=<folder> says where samples go")


def run(plan: "Plan", folder: Path, extra: list[str]) -> list[str]:
    """Make all samples of an experiment. Returns the names of the runs that failed; they have printed the reasons.

    Raises:
        UserError: the reference fails.
    """
    print(f"{plan.title}: {len(plan.runs)} runs", flush=True)
    common = [f"model={plan.model}", f"output_base_path={folder}"]
    common += [f"prompt_file={plan.prompt_file}"] if plan.prompt_file else []
    common += [f"total_prompt_num={plan.prompts}"] if plan.prompts else []
    given = {word.split("=")[0] for word in extra}
    common = [word for word in common if word.split("=")[0] not in given]
    for algo in plan.calibrate:
        print(f"\n{algo} must know of {plan.model}:", flush=True)
        words = [f"algo={algo}", f"model={plan.model}", "total_prompt_num=8", *of_the_model(extra)]
        call("calibrate", *words)  # it prints why it fails
    failed = []
    for i, each in enumerate(plan.runs, 1):
        print(f"\n[{i}/{len(plan.runs)}] {each.name}", flush=True)
        found = None if each.passes is None else threshold(each, plan.model, folder, extra)
        words = each.words if found is None else [*each.words, found["word"]]
        unknown = each.passes is not None and found is None  # budget has printed why
        if unknown or not call("run", *common, f"exp_name='{each.name}'", *words, *extra):
            failed.append(each.name)
            if i == 1:
                raise UserError(f"{plan.name}: the reference failed: mend that, and the same command goes on")
    return failed


def of_the_model(words: list[str]) -> list[str]:
    """The words that say which model runs, and where: those that a measurement of the model needs too."""
    return [word for word in words if word.startswith(("model.", "device=", "threads="))]


class Threshold(TypedDict):
    """A threshold that was found for a row.

    Attributes:
        asked: the words of the search.
        word: the threshold as a word of the command line.
        passes: the passes that it takes on dev prompts.
    """

    asked: list[str]
    word: str
    passes: float


def threshold(run: "Run", model: str, folder: Path, extra: list[str]) -> Threshold | None:
    """The threshold with which a run takes its passes on dev prompts. It is searched for once and kept in the folder.

    Returns:
        None if there is none; the search has printed the reason.
    """
    asked = [f"model={model}", *run.words, f"passes={run.passes:g}", *of_the_model(extra)]
    kept = thresholds(folder)
    if run.name not in kept or kept[run.name]["asked"] != asked:
        print(f"the threshold for {run.passes:g} passes, on dev prompts:", flush=True)
        printed = ask("budget", *asked)
        if printed is None:
            return None
        word = printed[-1]
        taken = next(line for line in printed if line.startswith(f"{word}: "))
        kept[run.name] = {"asked": asked, "word": word, "passes": float(taken.split()[1])}
        write_atomically(folder / THRESHOLDS, f"{json.dumps(kept, indent=1)}\n".encode())
    return kept[run.name]


def thresholds(folder: Path) -> dict[str, Threshold]:
    """The thresholds that were found for the runs of an experiment, by the run's name.

    Raises:
        UserError: the file is damaged.
    """
    try:
        kept: dict[str, Threshold] = parse_json(read_text(folder / THRESHOLDS, reading.RECORD))
        check(dict[str, Threshold], kept)
    except FileNotFoundError:
        return {}
    except Damaged as reason:
        raise UserError(
            f"{folder / THRESHOLDS} is damaged: delete it, and thresholds are found anew ({reason})"
        ) from None
    return kept


def ask(command: str, *words: str) -> list[str] | None:
    """The lines that another command prints in its own process, shown as they come; None if it fails."""
    printed: list[str] = []
    with started(command, words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # it is a pipe
        for each in process.stdout:
            print(each, end="", flush=True)
            printed.append(each.strip())
        ended = process.wait()
    return printed if ended == 0 and printed else None


def call(command: str, *words: str) -> bool:
    """Run another command in its own process. Returns whether it ended without an error, or with some failed samples:
    the table mentions those, and retry_failed=true tries them again."""
    with started(command, words) as process:
        return process.wait() in (0, SOME_FAILED)


@contextmanager
def started(command: str, words: Sequence[str], stdout: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Another command in its own process, which is stopped when this one is."""
    line = [sys.executable, "-m", "spectrum_bench", command, *words]
    with subprocess.Popen(
        line, env=environment_with_package(), stdout=stdout, encoding="utf-8", errors="replace"
    ) as process:
        try:
            yield process
        except KeyboardInterrupt:
            process.terminate()  # it may have had the same signal; it writes what it has
            process.wait()
            raise


def show(plan: "Plan", folder: Path, out: Path, failed: list[str], rows: int) -> None:
    """Score the runs, and write the report and the paper's numbers beside ours.

    Args:
        rows: the most prompts whose pictures the report shows.

    Raises:
        UserError: some runs failed. The report holds the others.
    """
    from spectrum_bench.reporting import plots
    from spectrum_bench.reporting.formats import plain
    from spectrum_bench.reporting.page import write_report
    from spectrum_bench.reporting.paper import lines_of, side_by_side
    from spectrum_bench.reporting.rows import Table
    from spectrum_bench.scoring.evaluation import evaluate
    from spectrum_bench.scoring.experiments import read_experiment

    reference, *others = (read_experiment(folder / run.name) for run in plan.runs if run.name not in failed)
    list(evaluate(others, reference))
    texts: dict[str, bytes] = {}
    found = thresholds(folder)
    told = [
        f"{run.name} asks for {run.passes:g} passes, which the paper's latencies mean: {found[run.name]['word']} took "
        f"{found[run.name]['passes']:g} on dev prompts."
        for run in plan.runs
        if run.passes is not None and run.name in found
    ]

    def beside(table: Table) -> dict[str, bytes]:
        if any(run.cited for run in plan.runs):
            texts["paper.md"] = side_by_side(table, plan, told).encode()
        figure = plots.sweep(lines_of(table, plan), plan.line.rpartition(".")[2]) if plan.line else {}
        return texts | {f"figure.{kind}": data for kind, data in figure.items()}

    baseline = None if plan.baseline in failed else plan.baseline
    table = write_report(others, reference, out, rows, baseline=baseline, beside=beside)
    print(plain(table))
    for text in texts.values():
        print(f"\n{text.decode()}")
    print(f"\nReport: {(out / 'index.html').resolve()}")
    if failed:
        raise UserError(
            f"{plan.name}: without {', '.join(failed)}, which failed: mend that, and the same command goes on"
        )
