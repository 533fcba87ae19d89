#!/usr/bin/env bash
# Hindcast from nothing to a table: traces, searched masks and the fit where the model has no constants yet, then rows at equal passes.
#   bash scripts/hindcast.sh tiny-flux                      14 and 10 of 50 passes, 32 captions with seeds that nothing was fitted on
#   PASSES="16 14 10 7" PROMPTS=16 bash scripts/hindcast.sh tiny-sdxl
#   bash scripts/hindcast.sh tiny-sd3 model.arguments.guidance_scale=5   words that every row has
#   PASSES=14 PROMPTS=16 DEV=8 bash scripts/hindcast.sh tiny-sd3
#   STEPS=28 PASSES="14 10 7" bash scripts/hindcast.sh tiny-flux           of 28 steps
#   STEPS=20 PASSES="10 7" bash scripts/hindcast.sh tiny-flux              of 20 steps
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:-tiny-flux} STEPS=${STEPS:-50} PROMPTS=${PROMPTS:-32} DEV=${DEV:-8} SEED=${SEED:-5000}
case $MODEL in tiny-wan | tiny-hunyuan) LIST=${LIST:-prompts/moving_test.txt} ;; *) LIST=${LIST:-prompts/shapes_test.txt} ;; esac
of=$([ "$STEPS" = 50 ] || echo "-of-$STEPS")
OUT=${OUT:-output_samples_image/$MODEL-hindcast$of} REPORT=${REPORT:-results/studies/hindcast/${MODEL#tiny-}$of}
EXTRA=(seed="$SEED" prompt_file="$LIST" num_inference_steps="$STEPS" "${@:2}")
source scripts/rows.sh

row nocache algo=nocache
for passes in ${PASSES:-14 10}; do
    flex=$(growing "$passes" "$STEPS")
    fit_hindcast "$passes" "$DEV"
    even=(schedule=power_law schedule.passes="$passes" schedule.power=1)
    row steps-$passes algo=steps num_inference_steps=$passes
    row taylor1-$passes algo=taylorseer schedule=adaptive_window site=last_block flex_window=$flex
    row taylor1-even-$passes algo=taylorseer site=last_block "${even[@]}"
    row taylor1-fitted-$passes algo=taylorseer site=last_block schedule=fitted +algo.calibration=$fitted   # at Hindcast's steps
    row spectrum-w0.5-$passes algo=spectrum algo.w=0.5 flex_window=$flex
    row spectrum-even-$passes algo=spectrum algo.w=0.5 "${even[@]}"
    row reuse-power-$passes algo=reuse schedule=power_law schedule.passes=$passes   # Hindsight's steps, nothing corrected
    row hindsight-$passes algo=hindsight algo.passes=$passes
    row hindcast-$passes algo=hindcast algo.passes=$passes algo.calibration=$fitted
    for solver in ${SOLVERS:-adams2 adams3 unipc dpmpp learned}; do   # at Hindcast's steps; shipped for FLUX, SD3.5 and SDXL, learned ones for FLUX, and SD3.5 with 14
        [ -n "$of" ] || [ ! -f "configs/calibration/$solver/$passes/$MODEL.json" ] || row $solver-$passes algo=hindcast algo.coefficients=$solver algo.passes=$passes
    done
done
make_rows
echo
python src/evaluate.py "$OUT"/*/ reference="$OUT/nocache"
for passes in ${PASSES:-14 10}; do
    python src/report.py "$OUT"/*-"$passes" reference="$OUT/nocache" baseline="hindcast-$passes" out="$REPORT/$passes" rows=8
done
python scripts/hindcast_table.py "$REPORT/rows.csv" "$OUT"
