# Sourced by the scripts that make a table: `row NAME KEY=VALUE...` notes a row, and `make_rows` makes $PROMPTS samples of $MODEL for each, in
# $OUT/NAME, in one process that loads the model once.
EXTRA+=()   # words that every row has
NOTED=()

row() { NOTED+=("$(printf '%q ' "$@")"); }

make_rows() {
    printf '%s\n' "${NOTED[@]}" |
        python src/rows.py - model="$MODEL" total_prompt_num="$PROMPTS" output_base_path="$OUT" "${EXTRA[@]}" || [ $? = 3 ]   # 3: some samples failed; the table says so
    NOTED=()
}

# Spectrum's growing gaps, flex_window=, with $1 of $2 passes.
growing() {
    case $1-of-$2 in
        16-of-50) echo 0.4 ;; 14-of-50) echo 0.75 ;; 10-of-50) echo 3.0 ;; 7-of-50) echo 20 ;;
        14-of-28) echo 0.2 ;; 10-of-28) echo 1.0 ;; 7-of-28) echo 10 ;;
        10-of-20) echo 0.5 ;; 7-of-20) echo 7 ;;
        *) echo "no growing gaps are known for $1 of $2 passes: take 16, 14, 10 or 7 of 50, 14, 10 or 7 of 28, 10 or 7 of 20" >&2; return 2 ;;
    esac
}

# Hindcast's constants with $1 of $STEPS passes, as algo.calibration= names them, are measured on $2 dev prompts where $MODEL has none: sets $fitted.
fit_hindcast() {
    fitted=hindcast/$([ "$STEPS" = 50 ] || echo "$STEPS/")$1
    [ -f "configs/calibration/$fitted/$MODEL.json" ] ||
        python src/calibrate.py algo=hindcast model="$MODEL" num_inference_steps="$STEPS" algo.passes="$1" algo.calibration="$fitted" total_prompt_num="$2"
}
