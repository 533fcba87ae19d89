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
