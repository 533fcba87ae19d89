"""The version of the code, for records."""

import hashlib
import subprocess
from pathlib import Path

from spectrum_bench.paths import PACKAGE, ROOT


def sources_hash() -> str:
    """A hash of the package's Python files, 12 hex digits. A checkout and an installed wheel give the same."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def git_sha(root: Path = ROOT) -> str:
    """The commit, followed by "-dirty" if a tracked file has changed or if src/ or configs/ hold a file that is not
    tracked. Reports in results/ do not count, because runs write them. "unknown" outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, encoding="utf-8", errors="replace"
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!results")
        new = git("status", "--porcelain", "--", "src", "configs")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed or new else "") or "unknown"
    except OSError:
        return "unknown"
