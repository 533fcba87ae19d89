#!/usr/bin/env bash
# Runs every method on a miniature at three budgets, about 16, 14 and 10 of 50 passes: samples, scores, for each budget a table and a page, and budgets.md.
#   bash scripts/methods_table.sh             tiny-flux, 32 captions that nothing was fitted or chosen on: what results/tiny/flux/methods holds
#   bash scripts/methods_table.sh tiny-sd3    another one
#   STEPS=28 bash scripts/methods_table.sh    about 14, 10 and 7 of 28 passes
#   PROMPTS=8 BUDGETS=14 ROWS=2 OUT=... REPORT=... bash scripts/methods_table.sh
# src/budget.py searches for thresholds on other prompts, once. They are written to $OUT/thresholds, and beside the tables.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt tests/requirements.txt   # these name cache-dit
MODEL=${1:-tiny-flux}
STEPS=${STEPS:-50} PROMPTS=${PROMPTS:-32} SEED=${SEED:-5000}
case $STEPS in 50) BUDGETS=${BUDGETS:-16 14 10} suffix= ;; 28) BUDGETS=${BUDGETS:-14 10 7} suffix=28 ;; *) echo "STEPS is 50 or 28" >&2; exit 2 ;; esac
case $MODEL in tiny-wan | tiny-hunyuan) LIST=${LIST:-prompts/moving_test.txt} ;; *) LIST=${LIST:-prompts/shapes_test.txt} ;; esac
OUT=${OUT:-output_samples_image/$MODEL-methods$suffix} REPORT=${REPORT:-results/tiny/${MODEL#tiny-}/methods$suffix}
EXTRA=(seed="$SEED" prompt_file="$LIST" num_inference_steps="$STEPS")
mkdir -p "$OUT"
source scripts/rows.sh

gate() {  # name, budget, words: a row at the threshold (or the key= given) that comes nearest to the budget
    local name=$1 budget=$2 found; shift 2
    found=$(sed -n "s/^$name-$budget //p" "$OUT/thresholds" 2>/dev/null || true)
    if [ -z "$found" ]; then
        found=$(python src/budget.py model="$MODEL" passes="$budget" num_inference_steps="$STEPS" "$@" | tail -1) || return 0   # it prints the reason; there is no row
        echo "$name-$budget $found" >> "$OUT/thresholds"
    fi
    row "$name-$budget" $(printf '%s\n' "$@" | grep -v '^key=') "$found"
}

row nocache algo=nocache
row nocache-again algo=nocache                                    # the noise floor
for budget in $BUDGETS; do
    case $budget-of-$STEPS in   # intervals after 1, 3 and 5 computed steps
        16-of-50) after1=3 after3=3 after5=4 shortest=1 ;;    # 17, 18 and 16 passes
        14-of-50) after1=4 after3=4 after5=5 shortest=1 ;;   # 13, 14 and 14
        10-of-50) after1=5 after3=6 after5=8 shortest=2 ;;    # 10, 10 and 10
        14-of-28) after1=2 after3=2 after5=3 shortest=1 ;;    # 14, 15 and 12
        10-of-28) after1=3 after3=3 after5=4 shortest=1 ;;    # 10, 11 and 10
        7-of-28) after1=4 after3=6 after5=8 shortest=2 ;;      # 7, 7 and 7
        *) echo "BUDGETS are of 16, 14 and 10 with 50 steps, of 14, 10 and 7 with 28" >&2; exit 2 ;;
    esac
    flex=$(growing "$budget" "$STEPS")
    fit_hindcast "$budget" 16
    row steps-$budget algo=steps num_inference_steps=$budget
    row spectrum-$budget algo=spectrum flex_window=$flex
    row spectrum-w0.5-$budget algo=spectrum algo.w=0.5 flex_window=$flex
    row racer-$budget algo=racer flex_window=$flex
    row reuse-$budget algo=reuse flex_window=$flex
    row taylor1-$budget algo=taylorseer schedule=adaptive_window site=last_block flex_window=$flex
    row taylorseer1-last-$budget algo=taylorseer site=last_block schedule.interval=$after5
    row adams-$budget algo=adams_bashforth schedule.interval=$after5
    row freqca-$budget algo=freqca schedule.interval=$after3
    row meancache-$budget algo=meancache algo.passes=$budget
    [ "$STEPS" != 50 ] || row l2p-$budget algo=l2p algo.passes=$budget   # its constants are of 50 steps
    row hindsight-$budget algo=hindsight algo.passes=$budget
    row hindcast-$budget algo=hindcast algo.passes=$budget algo.calibration=$fitted
    gate teacache $budget algo=teacache
    gate seacache $budget algo=seacache
    gate seacache_taylor $budget algo=seacache_taylor schedule.longest=0
    gate magcache $budget algo=magcache schedule.retention=0.1 schedule.longest=10
    gate sencache $budget algo=sencache schedule.start=0.05 schedule.longest=10
    gate easycache $budget algo=easycache
    if [ "$MODEL" = tiny-sdxl ]; then   # a U-Net has neither modules nor front blocks
        row deepcache-$budget algo=deepcache schedule.interval=$after1
        row fora-$budget algo=fora site=last_block schedule.interval=$after1
        continue
    fi
    row fora-$budget algo=fora schedule.interval=$after1
    row icc-$budget algo=icc schedule.interval=$after1             # linear layers of low rank and attention run at skipped steps
    row toca-$budget algo=toca schedule.interval=$after3
    row taylorseer1-$budget algo=taylorseer schedule.interval=$after5
    row taylorseer2-$budget algo=taylorseer algo.order=2 schedule.interval=$after5
    row hicache-$budget algo=hicache schedule.interval=$after5
    row hitaylor-$budget algo=hitaylor schedule.interval=$after5
    row foca-$budget algo=foca schedule.interval=$after5
    row lagrange2-$budget algo=lagrange algo.order=2 schedule.interval=$after5
    gate speca $budget algo=speca schedule.shortest=$shortest
    gate fbcache $budget algo=fbcache
    gate dicache $budget algo=dicache schedule.retention=0.08
    gate cgtaylor $budget algo=cgtaylor
    gate adacache $budget algo=adacache
    gate smoothcache $budget algo=smoothcache
    row pab-$budget algo=pab schedule.interval=$after1          # at its skipped steps MLPs run,
    row delta_dit-$budget algo=delta_dit schedule.interval=$after1   # and here half of the blocks
    row duca-$budget algo=duca schedule.interval=$after3
    row clusca-$budget algo=clusca schedule.interval=$after3
    row hyca-$budget algo=hyca schedule.interval=$after5
    [ "$MODEL" != tiny-sd3 ] || continue   # neither diffusers nor cache-dit caches anything in it
    row diffusers_taylorseer-$budget algo=diffusers_taylorseer site.arguments.cache_interval=$after3
    gate diffusers_fbcache $budget algo=diffusers_fbcache key=site.arguments.threshold
    gate diffusers_magcache $budget algo=diffusers_magcache key=site.arguments.threshold \
        site.arguments.retention_ratio=0.1 site.arguments.max_skip_steps=10
    for calibrator in dbcache taylorseer foca dmd recommended dbprune; do
        gate cachedit_$calibrator $budget algo=cachedit_$calibrator key=site.arguments.residual_diff_threshold \
            site.arguments.max_warmup_steps=4
    done
    gate diffusers_seacache $budget algo=diffusers_seacache key=site.arguments.threshold site.arguments.max_consecutive_cached=0   # refused but on Wan
    [ "$MODEL" != tiny-wan ] || continue   # these two would mix its two guidance calls
    row diffusers_pab-$budget algo=diffusers_pab site.arguments.spatial_attention_block_skip_range=$after1
    row diffusers_fastercache-$budget algo=diffusers_fastercache site.arguments.spatial_attention_block_skip_range=$after1
done
make_rows
echo
python src/evaluate.py "$OUT"/*/ reference="$OUT/nocache"
for budget in $BUDGETS; do
    echo
    python src/report.py "$OUT/nocache-again" "$OUT"/*-"$budget" reference="$OUT/nocache" out="$REPORT/$budget" \
        baseline="reuse-$budget" rows="${ROWS:-4}"
done
[ ! -d "$REPORT" ] || cp "$OUT/thresholds" "$REPORT/thresholds"
echo
python scripts/budgets.py "$REPORT"
