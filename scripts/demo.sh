#!/usr/bin/env bash
# From a fresh clone to a table and a page that compare twelve rows on 8 prompts, without a GPU: bash scripts/demo.sh
# scripts/tiny_table.sh has more rows and prompts.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=tiny-flux PROMPTS=8 OUT=output_samples_image/demo REPORT=output_samples_image/demo-report
source scripts/rows.sh

row nocache algo=nocache
row nocache-again algo=nocache                                   # the noise floor
row steps-14 algo=steps num_inference_steps=14                   # 14 of 50 passes from here on
row teacache-14 algo=teacache schedule.threshold=0.12
row fora-14 algo=fora schedule.interval=4
row taylorseer1-14 algo=taylorseer algo.order=1 schedule.interval=4
row taylor1-14 algo=taylorseer schedule=adaptive_window site=last_block
row spectrum-14 algo=spectrum
row spectrum-w0.5-14 algo=spectrum algo.w=0.5
row hindsight-14 algo=hindsight
row hindcast-14 algo=hindcast
row steps-4 algo=steps num_inference_steps=4
row student-4 model=tiny-flux-student algo=steps num_inference_steps=4   # distilled to four steps
make_rows
echo
python src/evaluate.py "$OUT"/* reference="$OUT/nocache"
echo
python src/report.py "$OUT"/* reference="$OUT/nocache" out="$REPORT" rows=8
cat <<'END'

Next, after "source .venv/bin/activate":
  python src/try.py algo=taylorseer       a method beside others with as many passes; docs/your-method.md adds yours
  python src/leaderboard.py               all rows of results/ as a page, and which method suits a model, a card and a speed
  python src/text_to_image.py --help      every model, method and key
END
