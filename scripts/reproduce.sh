#!/usr/bin/env bash
# Runs the Spectrum paper's tables and figures, one after the other. Finished samples are not made again.
#   bash scripts/reproduce.sh tiny               on the miniatures, 16 prompts each, two cores and no GPU
#   bash scripts/reproduce.sh full               as the paper has them: python src/reproduce.py lists the GPU hours
#   bash scripts/reproduce.sh tiny table1_flux fig5_lambda
#   PROMPTS=64 ROWS=2 bash scripts/reproduce.sh tiny      ROWS: prompts whose pictures the pages show
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
SIZE=${1:?tiny or full}; shift
NAMES=${*:-$(cd configs/experiment && printf '%s\n' *.yaml | sed 's/\.yaml$//')}
for name in $NAMES; do
    case $SIZE-$name in
        full-*) python src/reproduce.py "$name" report=results ;;
        tiny-table1_sd35 | tiny-table3_schedule) model=tiny-sd3 ;;
        tiny-fig10_sdxl) model=tiny-sdxl ;;
        tiny-table2_wan) model=tiny-wan ;;
        tiny-table2_hunyuan | tiny-table8_latents) model=tiny-hunyuan ;;
        tiny-*) model=tiny-flux ;;
        *) echo "name tiny or full, not $SIZE" >&2; exit 2 ;;
    esac
    [ "$SIZE" = tiny ] || continue
    python src/reproduce.py "$name" model="$model" report=results total_prompt_num="${PROMPTS:-16}" rows="${ROWS:-6}"
done
