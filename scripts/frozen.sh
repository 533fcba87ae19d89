#!/usr/bin/env bash
# Is it worth deciding on the way? Each gate at three budgets, as it decides, with the schedule that it chose most often on 32 dev prompts, and with
# the steps that it computed most often there: same forecaster, same site, paired on captions that neither thresholds nor schedules come from.
#   bash scripts/frozen.sh tiny-flux                      32 captions, about 16, 14 and 10 of 50 passes
#   PROMPTS=16 BUDGETS=14 bash scripts/frozen.sh tiny-wan
# src/budget.py searches for thresholds on dev prompts, once. They are written to $OUT/thresholds.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:-tiny-flux} PROMPTS=${PROMPTS:-32} SEED=${SEED:-5000} BUDGETS=${BUDGETS:-16 14 10} DEV=${DEV:-32}
OUT=${OUT:-output_samples_image/$MODEL-frozen} REPORT=${REPORT:-results/studies/frozen/${MODEL#tiny-}}
kind=shapes
case $MODEL in tiny-wan | tiny-hunyuan) kind=moving ;; esac
EXTRA=(seed="$SEED" prompt_file="prompts/${kind}_test.txt")
source scripts/rows.sh
mkdir -p "$OUT"
declare -A GATES=(
    [teacache]="" [seacache]="" [easycache]="" [sencache]="schedule.start=0.05 schedule.longest=10"
    [fbcache]="" [cgtaylor]="" [adacache]=""   # not DiCache, whose forecaster asks its gate how far the probe has come
)
[ "$MODEL" != tiny-sdxl ] || unset 'GATES[fbcache]' 'GATES[cgtaylor]' 'GATES[adacache]'   # not in a U-Net

declare -A FOUND=()
for budget in $BUDGETS; do
    for gate in $(printf '%s\n' "${!GATES[@]}" | sort); do
        word=$(sed -n "s/^$gate-$budget //p" "$OUT/thresholds" 2>/dev/null || true)
        if [ -z "$word" ]; then
            word=$(python src/budget.py model="$MODEL" algo="$gate" passes="$budget" ${GATES[$gate]} | tail -1) || continue   # it prints the reason
            echo "$gate-$budget $word" >> "$OUT/thresholds"
        fi
        FOUND[$gate-$budget]="algo=$gate ${GATES[$gate]} $word"
    done
done

(   # what each gate chooses on dev prompts
    OUT=$OUT/dev PROMPTS=$DEV EXTRA=(seed=0 prompt_file="prompts/${kind}_dev32.txt")
    for name in "${!FOUND[@]}"; do row "$name" ${FOUND[$name]}; done
    make_rows
)
row nocache algo=nocache
for name in "${!FOUND[@]}"; do
    row "$name" ${FOUND[$name]}
    for schedule in frozen consensus; do row "$name-$schedule" ${FOUND[$name]%% *} schedule=$schedule of="$OUT/dev/$name"; done
done
make_rows
echo
python src/evaluate.py "$OUT" reference="$OUT/nocache" metrics=psnr > /dev/null
python scripts/frozen.py "$OUT" "$OUT/nocache" "$REPORT"
