#!/usr/bin/env bash
# A few-step student, cached and not, beside its teacher with few steps and cached, on captions that none of them has seen.
#   bash scripts/student.sh                                 64 captions
#   PROMPTS=8 OUT=... REPORT=... bash scripts/student.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:-tiny-flux} MODEL=${MODEL%-student} PROMPTS=${PROMPTS:-64} SEED=${SEED:-5000}
OUT=${OUT:-output_samples_image/student} REPORT=${REPORT:-results/studies/student}
mkdir -p "$OUT"   # each caption gets a noise of its own: how many captions few steps follow depends much on it
awk -v seed="$SEED" '{ printf "{\"prompt\": \"%s\", \"seed\": %d}\n", $0, seed + NR - 1 }' prompts/shapes_test.txt > "$OUT/prompts.jsonl"
EXTRA=(prompt_file="$OUT/prompts.jsonl" "${@:2}")
source scripts/rows.sh

row nocache algo=nocache
for passes in 4 7 10; do
    even=(schedule=power_law schedule.passes=$passes schedule.power=1)
    row steps-$passes algo=steps num_inference_steps=$passes
    row spectrum-$passes algo=spectrum algo.w=0.5 "${even[@]}"
    row taylor1-$passes algo=taylorseer site=last_block "${even[@]}"
    row hindsight-$passes algo=hindsight algo.passes=$passes
    [ $passes = 4 ] || row hindcast-$passes algo=hindcast algo.passes=$passes   # it has no constants for 4
done
student=(model="$MODEL-student" num_inference_steps=4)
row student-4 algo=steps "${student[@]}"
row student-reuse-3 algo=reuse schedule=mask schedule.steps=[0,1,3] "${student[@]}"
row student-reuse-3-early algo=reuse schedule=mask schedule.steps=[0,1,2] "${student[@]}"
row student-taylor1-3 algo=taylorseer site=last_block schedule=mask schedule.steps=[0,1,3] "${student[@]}"
row student-spectrum-3 algo=spectrum algo.w=0.5 schedule=mask schedule.steps=[0,1,3] "${student[@]}"
row student-reuse-2 algo=reuse schedule=mask schedule.steps=[0,2] "${student[@]}"
make_rows
echo
python src/evaluate.py "$OUT"/*/ reference="$OUT/nocache" metrics=psnr,ssim,caption
for align in passes latency; do
    python src/report.py "$OUT"/*/ reference="$OUT/nocache" baseline=student-4 align=$align out="$OUT-report/$align" rows=8
done
python scripts/student_table.py "$REPORT/rows.csv" "$OUT"
