#!/usr/bin/env bash
# Sets up .venv, and runs the linter, the type checker and the tests: bash scripts/test.sh [pytest arguments]
# The fast tests, two minutes: bash scripts/test.sh -m "not slow and not crash"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt tests/requirements.txt
if [ ! -x /usr/bin/chromium ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Debian's chromium for the test of the report's page"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 || true
fi
ruff check --quiet .
ruff format --quiet --check .
types=$(mktemp)
mypy --no-error-summary >"$types" &   # beside the tests: of a fresh checkout it takes twenty seconds of one core
status=0
cores=$(env -u OMP_NUM_THREADS nproc)   # nproc would count the threads that setup.sh sets
python -m pytest -n $((cores < 4 ? cores : 4)) --dist worksteal "$@" || status=$?   # each worker imports torch and models anew
wait $! || status=$?
cat "$types"
rm "$types"
exit "$status"
