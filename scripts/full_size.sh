#!/usr/bin/env bash
# Measures times, speedups, the cost of a skipped step and memory at full size on a GPU. The weights are random: there is no
# download and no quality figure.   bash scripts/full_size.sh flux|sd3-5|sdxl|hunyuan|wan14b|wan1-3b|... [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:?name a model: one of configs/architectures}; shift
GPU=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr 'A-Z ' 'a-z-' || true)
GPU=${GPU#nvidia-} OUT=${OUT:-output_samples_full_size/$MODEL} PROMPTS=${PROMPTS:-3}
REPORT=${REPORT:-results/${GPU:-full_size}/$MODEL}   # "NVIDIA H200": results/h200
EXTRA=(model.init=random "$@")
source scripts/rows.sh

row nocache algo=nocache
row nocache-again algo=nocache
row spectrum-14 algo=spectrum
row spectrum-10 algo=spectrum flex_window=3.0
row spectrum-w0.5-10 algo=spectrum algo.w=0.5 flex_window=3.0
row taylorseer-last-10 algo=taylorseer schedule=adaptive_window site=last_block flex_window=3.0
row reuse-10 algo=reuse flex_window=3.0
make_rows
echo
python src/evaluate.py "$OUT"/* reference="$OUT/nocache"
python src/report.py "$OUT"/* reference="$OUT/nocache" out="$REPORT"
