# Sourced by the other scripts: makes .venv from the requirements files in $@, once, and again when one of them changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$(cat "$@" | sha256sum)
stamp=.venv/$(echo "$@" | tr ' /' '+-').installed
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "setting up .venv, once: some 100 packages, 6 GB on disk, most of it torch; two minutes with a fast connection"
    [ -x .venv/bin/python ] || "${PYTHON:-python3.11}" -m venv .venv
    echo "  fetching and installing the $(cat "$@" | grep -c ==) packages that $* name, and what they need"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
    echo "$wanted" > "$stamp"
    echo "  set up after $SECONDS s"
fi
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONUNBUFFERED=1
