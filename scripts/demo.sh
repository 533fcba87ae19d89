#!/usr/bin/env bash
# From a fresh clone to a table and a page that compare the algorithms on 8 prompts, without a GPU: bash scripts/demo.sh
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PROMPTS=8 BUDGETS=slow OUT=output_samples_image/demo REPORT=output_samples_image/demo-report
bash scripts/tiny_table.sh || exit
cat <<'END'

Next, after "source .venv/bin/activate":
  python src/try.py algo=taylorseer       a method beside others with as many passes; docs/your-method.md adds yours
  python src/leaderboard.py               all rows of results/ as a page, and which method suits a model, a card and a speed
  python src/text_to_image.py --help      every model, method and key
END
