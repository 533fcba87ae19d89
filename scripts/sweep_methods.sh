#!/usr/bin/env bash
# Runs methods on a model as one sweep, scores them against the reference, and writes a table and a page.
#   bash scripts/sweep_methods.sh model=tiny-flux total_prompt_num=8
#   LAUNCHER=slurm_gpu bash scripts/sweep_methods.sh model=flux prompt_file=prompts/drawbench.txt hydra.launcher.partition=gpu
# LAUNCHER: joblib, submitit_local, submitit_slurm or slurm_gpu (pip install hydra-joblib-launcher or hydra-submitit-launcher);
# without it the runs follow each other on this machine. For clips: ENTRY=src/text_to_video.py. Finished samples are not made again.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
ALGOS=${ALGOS:-fora,taylorseer,teacache,magcache,spectrum,reuse} ENTRY=${ENTRY:-src/text_to_image.py} OUT=${OUT:-output_samples_sweep}
sweep() { python "$ENTRY" -m ${LAUNCHER:+hydra/launcher=$LAUNCHER} output_base_path="$OUT" "$@" || [ $? = 3 ]; }   # 3: some samples failed; the table says so

sweep algo=nocache exp_name=nocache "$@"
sweep algo="$ALGOS" exp_name='${algo.name}' "$@"
python src/evaluate.py "$OUT"/*/ reference="$OUT/nocache"
python src/report.py "$OUT"/*/ reference="$OUT/nocache" out="${REPORT:-$OUT-report}" baseline="${BASELINE:-${ALGOS##*,}}"
