# Sourced by the scripts that make a table: `row NAME KEY=VALUE...` makes $PROMPTS samples of $MODEL in $OUT/NAME.
ENTRY=src/text_to_image.py; ! grep -q ^fps: "configs/model/$MODEL.yaml" || ENTRY=src/text_to_video.py
EXTRA+=()   # words that every row has

row() {
    echo
    python "$ENTRY" model="$MODEL" total_prompt_num="$PROMPTS" output_base_path="$OUT" exp_name="$@" "${EXTRA[@]}" || [ $? = 3 ]   # 3: some samples failed; the table says so
}
