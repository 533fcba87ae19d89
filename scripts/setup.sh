# Sourced by the other scripts: makes .venv from the requirements files in $@, once, and again when one of them changes.
# What is installed stands in the lock file beside the last of them, with hashes that pip compares (scripts/lock.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lock=$(dirname "${@: -1}")/requirements.lock
wanted=$(sha256sum < "$lock")
stamp=.venv/$(echo "$@" | tr ' /' '+-').installed
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "setting up .venv, once: some 100 packages, 6 GB on disk, most of it torch; two minutes with a fast connection"
    [ -x .venv/bin/python ] || "${PYTHON:-python3.11}" -m venv .venv
    echo "  fetching and installing the $(cat "$@" | grep -c ==) packages that $* name, and what they need: $(grep -c == "$lock") in all"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    echo "$wanted" > "$stamp"
    echo "  set up after $SECONDS s"
fi
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONUNBUFFERED=1
