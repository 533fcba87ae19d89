"""Small pictures of the samples of rows whose runs are at hand."""

from collections.abc import Sequence

from spectrum_bench.reporting.board.read import Entry
from spectrum_bench.reporting.pictures import thumbnail
from spectrum_bench.scoring.experiments import Experiment

FEW = 4  # samples of a row
LONGEST = 300  # characters of a prompt
MOST = 1_000_000  # characters of all of them: the page stays below 2 MB


def pictures(entries: Sequence[Entry], runs: Sequence[Experiment]) -> dict[int, list[dict[str, str]]]:
    """The first samples of each row whose run is among `runs`: the row's number -> their data URIs and prompts.

    Rows come in their order, until MOST is reached.
    """
    matched = {n: run for n, entry in enumerate(entries) if (run := run_of(entry, runs)) is not None}
    found: dict[int, list[dict[str, str]]] = {}
    left = MOST
    for number, run in matched.items():
        records = run.records[:FEW]
        uris = [thumbnail(run, record, FEW * len(matched))[0] for record in records]
        left -= sum(map(len, uris))
        if left < 0:
            break
        found[number] = [
            {"uri": uri, "prompt": record.prompt[:LONGEST]} for uri, record in zip(uris, records, strict=True)
        ]
    return found


def run_of(entry: Entry, runs: Sequence[Experiment]) -> Experiment | None:
    """The run that a row was made of: the one of its name, its model and its commit; None if it is not at hand."""
    commit = entry.facts.get("Commit")
    for run in runs:
        if (run.name, run.model.get("name")) == (entry.name, entry.model) and run.records[0].git_sha == commit:
            return run
    return None
