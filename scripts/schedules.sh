#!/usr/bin/env bash
# What is a schedule worth, and what a correction? Three forecasters of the last block on four schedules with equal passes, each as it is and
# with correct=hindsight. One of the schedules is searched for each forecaster on dev prompts. At the end replay is held against the runs.
#   bash scripts/schedules.sh tiny-flux                     14 of 50 passes, 32 captions with seeds that nothing was searched on
#   PASSES=10 PROMPTS=16 bash scripts/schedules.sh tiny-wan
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:-tiny-flux} PASSES=${PASSES:-14} PROMPTS=${PROMPTS:-32} SEED=${SEED:-5000}
OUT=${OUT:-output_samples_image/$MODEL-schedules-$PASSES} REPORT=${REPORT:-results/studies/schedules/${MODEL#tiny-}-$PASSES}
EXTRA=(seed="$SEED")
source scripts/rows.sh
declare -A METHODS=([reuse]="algo=reuse" [taylor1]="algo=taylorseer algo.order=1 site=last_block" [spectrum]="algo=spectrum algo.w=0.5")
declare -A SCHEDULES=([even]="schedule=power_law schedule.power=1" [power]="schedule=power_law" [searched]="schedule=searched")
case $PASSES in 16) flex=0.4 ;; 14) flex=0.75 ;; 10) flex=3.0 ;; esac   # Spectrum's growing gaps with as many passes
[ -z "${flex:-}" ] || SCHEDULES[growing]="schedule=adaptive_window flex_window=$flex"

row nocache algo=nocache
for method in reuse taylor1 spectrum; do
    words=(${METHODS[$method]})
    algo=${words[0]#algo=}
    [ -f "configs/calibration/searched/$PASSES/$algo/$MODEL.json" ] || python src/search.py model="$MODEL" "${words[@]}" passes="$PASSES"
    for schedule in even growing power searched; do
        [ -n "${SCHEDULES[$schedule]:-}" ] || continue
        set -- ${SCHEDULES[$schedule]}
        [ "$schedule" = growing ] || set -- "$@" schedule.passes="$PASSES"
        row "$method-$schedule" "${words[@]}" "$@"
        row "$method-$schedule-corrected" "${words[@]}" "$@" correct=hindsight
    done
done
make_rows
echo
python src/evaluate.py "$OUT"/*/ reference="$OUT/nocache"
python src/report.py "$OUT" reference="$OUT/nocache" out="$REPORT" rows=8
mkdir -p "$REPORT"
python src/trace.py model="$MODEL" trace="$OUT/trace.safetensors"
python src/replay.py model="$MODEL" trace="$OUT/trace.safetensors" against="$OUT" out="$REPORT" | tee "$REPORT/replay.txt"
