#!/usr/bin/env bash
# From a fresh clone to a table and a page that compare the algorithms on 8 prompts, without a GPU: bash scripts/demo.sh
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PROMPTS=8 BUDGETS=slow OUT=output_samples_image/demo REPORT=output_samples_image/demo-report
exec bash scripts/tiny_table.sh
