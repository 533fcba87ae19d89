#!/usr/bin/env bash
# Caching where a picture is edited: some methods with 14 of 50 passes on the edits of prompts/edits.jsonl.
#   bash scripts/edits.sh                                 20 edits, two minutes of one core
#   PROMPTS=4 OUT=... REPORT=... bash scripts/edits.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:-tiny-kontext} PROMPTS=${PROMPTS:-20}
OUT=${OUT:-output_samples_edited/$MODEL} REPORT=${REPORT:-results/tiny/kontext}
EXTRA=(prompt_file=prompts/edits.jsonl "${@:2}")
source scripts/rows.sh

row nocache algo=nocache
row steps-14 algo=steps num_inference_steps=14
row spectrum-14 algo=spectrum
even=(schedule=power_law schedule.passes=14 schedule.power=1)
row spectrum-even-14 algo=spectrum algo.w=0.5 "${even[@]}"
row taylor1-14 algo=taylorseer site=last_block "${even[@]}"
row hindsight-14 algo=hindsight algo.passes=14
row fbcache algo=fbcache
make_rows
echo
python src/evaluate.py "$OUT"/*/ reference="$OUT/nocache"
python src/report.py "$OUT"/*/ reference="$OUT/nocache" baseline=spectrum-14 out="$REPORT" rows=20
