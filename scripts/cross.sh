#!/usr/bin/env bash
# How much of a method is its schedule, and how much its forecaster? Six schedules x six forecasters of the last block, all with 14 of 50 passes:
# a matrix of PSNR, and the share of its differences that each explains.
#   bash scripts/cross.sh tiny-flux                       16 captions; another miniature likewise
#   PROMPTS=32 SEED=7 OUT=... REPORT=... bash scripts/cross.sh tiny-sd3
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:-tiny-flux} PROMPTS=${PROMPTS:-16} SEED=${SEED:-5000}
OUT=${OUT:-output_samples_image/$MODEL-cross} REPORT=${REPORT:-results/studies/cross/${MODEL#tiny-}}
EXTRA=(seed="$SEED")
source scripts/rows.sh
declare -A SCHEDULES=(
    [even]="schedule=power_law schedule.passes=14 schedule.power=1"
    [warm]="schedule=mask schedule.steps=[0,1,2,3,4,9,14,19,24,29,34,39,44,49]"           # five in a row, then every fifth: TaylorSeer's kind
    [power]="schedule=power_law schedule.passes=14"
    [growing]="schedule=adaptive_window flex_window=0.75"                                  # Spectrum's
    [shrinking]="schedule=mask schedule.steps=[0,8,15,21,26,30,34,37,40,43,45,47,48,49]"   # gaps the other way round: a control
    [ends]="schedule=mask schedule.steps=[0,1,2,3,5,8,14,22,30,38,43,46,48,49]"            # dense at both ends
)
declare -A FORECASTERS=(
    [reuse]="algo=reuse"
    [taylor1]="algo=taylorseer algo.order=1 site=last_block"
    [taylor2]="algo=taylorseer algo.order=2 site=last_block"
    [hermite2]="algo=hicache algo.order=2 site=last_block"
    [spectrum0.5]="algo=spectrum algo.w=0.5"
    [spectrum1]="algo=spectrum"
)
row nocache algo=nocache
for schedule in even warm power growing shrinking ends; do
    for forecaster in reuse taylor1 taylor2 hermite2 spectrum0.5 spectrum1; do
        row "$schedule--$forecaster" ${FORECASTERS[$forecaster]} ${SCHEDULES[$schedule]}
    done
done
make_rows
echo
python src/evaluate.py "$OUT"/*/ reference="$OUT/nocache" metrics=psnr > /dev/null
python scripts/cross.py "$OUT" "$OUT/nocache" "$REPORT"
