#!/usr/bin/env bash
# Compares the algorithms on a miniature: samples, scores, a table and a page.
#   bash scripts/tiny_table.sh              tiny-flux, 64 prompts, two budgets, a report each: what results/tiny/flux holds
#   bash scripts/tiny_table.sh tiny-sd3     another one; not tiny-sdxl, which has no modules: methods_table.sh
#   PROMPTS=8 BUDGETS=slow ROWS=2 OUT=... REPORT=... bash scripts/tiny_table.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:-tiny-flux}
PROMPTS=${PROMPTS:-64} BUDGETS=${BUDGETS:-slow fast} OUT=${OUT:-output_samples_image/$MODEL} REPORT=${REPORT:-results/tiny/${MODEL#tiny-}}
source scripts/rows.sh
for budget in $BUDGETS; do [[ $budget = slow || $budget = fast ]] || { echo "BUDGETS are of slow and fast" >&2; exit 2; }; done

row nocache algo=nocache
row nocache-again algo=nocache                                   # the noise floor
row session algo=reuse schedule=full                             # every step computed: the cost of the harness itself
for budget in $BUDGETS; do
    case $budget in                                              # the Spectrum paper's two settings: 14 and 10 of 50 passes
        slow) steps=14 interval=4 flex=0.75 ;;
        fast) steps=10 interval=6 flex=3.0 ;;
    esac
    case $MODEL-$budget in                                       # the thresholds of TeaCache that come nearest to them (src/budget.py)
        tiny-flux-slow) threshold=0.12 ;;
        tiny-flux-fast) threshold=0.185 ;;
        tiny-sd3-slow) threshold=0.191 ;;
        tiny-sd3-fast) threshold=0.328 ;;
        tiny-hunyuan-slow) threshold=0.178 ;;
        tiny-hunyuan-fast) threshold=0.294 ;;
        tiny-wan-slow) threshold=0.143 ;;
        tiny-wan-fast) threshold=0.22 ;;
        *) threshold=0.15 ;;
    esac
    row steps-$budget algo=steps num_inference_steps=$steps
    row fora-$budget algo=fora schedule.interval=$interval
    row taylorseer1-$budget algo=taylorseer algo.order=1 schedule.interval=$interval
    row taylorseer2-$budget algo=taylorseer algo.order=2 schedule.interval=$interval
    row taylorseer1-last-$budget algo=taylorseer site=last_block schedule.interval=$interval   # as in Spectrum's tables
    row teacache-$budget algo=teacache schedule.threshold=$threshold
    row spectrum-$budget algo=spectrum flex_window=$flex
    row spectrum-w0.5-$budget algo=spectrum algo.w=0.5 flex_window=$flex
    # reuse and order-1 Taylor of the same tensor at the same steps show what the schedule alone gives
    row reuse-$budget algo=reuse flex_window=$flex
    row taylor1-$budget algo=taylorseer schedule=adaptive_window site=last_block flex_window=$flex
    row hindsight-$budget algo=hindsight algo.passes=$steps
    [ ! -f "configs/calibration/hindcast/$steps/$MODEL.json" ] || row hindcast-$budget algo=hindcast algo.passes=$steps
done
make_rows
echo
python src/evaluate.py "$OUT"/* reference="$OUT/nocache"
for budget in $BUDGETS; do
    echo
    python src/report.py "$OUT/nocache-again" "$OUT/session" "$OUT"/*-"$budget" reference="$OUT/nocache" out="$REPORT/$budget" rows="${ROWS:-16}"
done
