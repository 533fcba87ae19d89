#!/usr/bin/env bash
# Hindcast from nothing to a table: traces, searched masks and the fit where the model has no constants yet, then rows at equal passes.
#   bash scripts/hindcast.sh tiny-flux                      14 and 10 of 50 passes, 32 captions with seeds that nothing was fitted on
#   PASSES=14 PROMPTS=16 DEV=8 bash scripts/hindcast.sh tiny-sd3
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:-tiny-flux} PROMPTS=${PROMPTS:-32} DEV=${DEV:-8} SEED=${SEED:-5000}
OUT=${OUT:-output_samples_image/$MODEL-hindcast} REPORT=${REPORT:-results/studies/hindcast/${MODEL#tiny-}}
EXTRA=(seed="$SEED")
source scripts/rows.sh

row nocache algo=nocache
for passes in ${PASSES:-14 10}; do
    case $passes in 16) flex=0.4 ;; 14) flex=0.75 ;; *) flex=3.0 ;; esac   # Spectrum's growing gaps with as many passes
    [ -f "configs/calibration/hindcast/$passes/$MODEL.json" ] ||
        python src/calibrate.py algo=hindcast model="$MODEL" algo.passes="$passes" total_prompt_num="$DEV"
    row steps-$passes algo=steps num_inference_steps=$passes
    row taylor1-$passes algo=taylorseer schedule=adaptive_window site=last_block flex_window=$flex
    row spectrum-w0.5-$passes algo=spectrum algo.w=0.5 flex_window=$flex
    row reuse-power-$passes algo=reuse schedule=power_law schedule.passes=$passes   # Hindsight's steps, nothing corrected
    row hindsight-$passes algo=hindsight algo.passes=$passes
    row hindcast-$passes algo=hindcast algo.passes=$passes
done
make_rows
echo
python src/evaluate.py "$OUT"/*/ reference="$OUT/nocache"
for passes in ${PASSES:-14 10}; do
    python src/report.py "$OUT"/*-"$passes" reference="$OUT/nocache" baseline=hindcast out="$REPORT/$passes" rows=8
done
