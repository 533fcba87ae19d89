#!/usr/bin/env bash
# Builds the documentation as a site of static files, which needs no server: open site/index.html.
#   bash scripts/site.sh
#   OUT=/tmp/site bash scripts/site.sh
#   bash scripts/site.sh serve            shows it at http://127.0.0.1:8000, and builds it again whenever a page changes
#   bash scripts/site.sh tools            makes the environment alone
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
WHAT=${1:-build} OUT=${OUT:-site}
lock=docs/requirements.lock tools=.site/venv
if [ "$(cat "$tools/installed" 2>/dev/null)" != "$(sha256sum < "$lock")" ]; then
    echo "setting up $tools, once: $(grep -c == "$lock") packages, 200 MB on disk, half a minute"
    python -m venv --clear "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    sha256sum < "$lock" > "$tools/installed"
fi
export NO_MKDOCS_2_WARNING=1
[ "$WHAT" != tools ] || exit 0
python src/leaderboard.py out=.site/leaderboard.html
case $WHAT in
    build)
        # --quiet would hide the warnings from --strict
        "$tools/bin/mkdocs" build --strict --site-dir "$(realpath "$OUT")" 2>&1 | sed "/^INFO/d"
        echo "$OUT/index.html: $(find "$OUT" -name '*.html' | wc -l) pages, $(du -sh "$OUT" | cut -f1)" ;;
    serve) exec "$tools/bin/mkdocs" serve ;;
    *) echo "name build, serve or tools, not $WHAT" >&2; exit 2 ;;
esac
