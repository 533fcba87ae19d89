#!/usr/bin/env bash
# Makes the lock files again after a change of a requirements file: every package with its version and its hashes.
# bash scripts/lock.sh, then commit what changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3.11}" -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9
compile() { "$tools/bin/uv" pip compile --quiet --generate-hashes --python-version 3.11 --no-header --no-annotate "$@"; }
compile requirements.txt --output-file requirements.lock
compile requirements.txt tests/requirements.txt --output-file tests/requirements.lock
compile docs/requirements.txt --output-file docs/requirements.lock
