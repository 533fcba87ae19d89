#!/usr/bin/env bash
# Measures how much a reference differs from itself when it runs again, in a batch, with another attention backend, or compiled. A
# smaller difference between two methods means nothing.
#   bash scripts/noise_floor.sh                  tiny-flux: what results/tiny/flux/noise_floor holds
#   PROMPTS=16 bash scripts/noise_floor.sh tiny-sd3
# runtime.compile needs a C++ compiler on a CPU. A setting that the machine cannot run is reported and left out.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
MODEL=${1:-tiny-flux} PROMPTS=${PROMPTS:-64}
OUT=${OUT:-output_samples_image/$MODEL-noise_floor} REPORT=${REPORT:-results/tiny/${MODEL#tiny-}/noise_floor}
source scripts/rows.sh

row reference algo=nocache
row again algo=nocache
row batch-of-2 algo=nocache runtime.batch_size=2
row another-attention algo=nocache runtime.attention=_native_math
row compiled algo=nocache runtime.compile=true
make_rows || true
echo
python src/evaluate.py "$OUT"/*/ reference="$OUT/reference"
python src/report.py "$OUT"/*/ reference="$OUT/reference" out="$REPORT" rows=4
