"""Files of a metric in the Hugging Face cache."""

from collections.abc import Sequence
from pathlib import Path

from spectrum_bench.errors import MetricUnavailable
from spectrum_bench.sampling.catalogue import HubEntry
from spectrum_bench.sampling.remote import checksum


def fetched(metric: str, entries: Sequence[HubEntry]) -> list[Path]:
    """The files, which are never downloaded here. Checksums are compared, because scores of wrong weights look
    plausible.

    Args:
        entries: of one repository.

    Raises:
        MetricUnavailable: a file is missing or damaged.
    """
    repo, revision = entries[0].repo, entries[0].revision
    fetch = " ".join(["hf download", repo, *(e.file for e in entries), *(["--revision", revision] if revision else [])])
    for entry in entries:
        if not entry.path.is_file():
            raise MetricUnavailable(metric, f"no weights of {repo} in the Hugging Face cache", fetch)
        if entry.sha256 not in (None, checksum(entry.path)):
            raise MetricUnavailable(metric, f"weights {entry.path} are damaged", f"delete that file; {fetch}")
    return [entry.path for entry in entries]
