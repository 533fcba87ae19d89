#!/usr/bin/env bash
# Runs a grid of Spectrum's own numbers (w, lam, m, flex_window), scores it, and writes a table and a page.
#   bash scripts/sweep_spectrum.sh model=tiny-flux total_prompt_num=8
#   LAUNCHER=slurm_gpu W=0.5,1 LAM=0.01,0.1,1 M=4 FLEX=0.75,3 bash scripts/sweep_spectrum.sh model=flux prompt_file=prompts/drawbench.txt
# A search instead of a grid: python src/tune.py --help
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
W=${W:-0.5,1} LAM=${LAM:-0.1} M=${M:-2,4} FLEX=${FLEX:-0.75,3} ENTRY=${ENTRY:-src/text_to_image.py} OUT=${OUT:-output_samples_sweep_spectrum}
sweep() { python "$ENTRY" -m ${LAUNCHER:+hydra/launcher=$LAUNCHER} output_base_path="$OUT" "$@" || [ $? = 3 ]; }   # 3: some samples failed; the table says so

sweep algo=nocache exp_name=nocache "$@"
sweep algo=spectrum algo.w="$W" algo.lam="$LAM" algo.m="$M" flex_window="$FLEX" \
    exp_name='w\=${algo.w}\,lam\=${algo.lam}\,m\=${algo.m}\,flex\=${flex_window}' "$@"
python src/evaluate.py "$OUT"/*/ reference="$OUT/nocache"
python src/report.py "$OUT"/*/ reference="$OUT/nocache" out="${REPORT:-$OUT-report}"
