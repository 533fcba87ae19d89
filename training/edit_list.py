"""Draw the list of held-out edits that is shipped: python training/edit_list.py

Writes prompts/edits.jsonl and the pictures to be edited, prompts/edits/<number>.jpg. `target_caption` of a line is the
caption of the picture after the edit.
"""

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

COUNT, SEED = 20, 5000


def main() -> None:
    from PIL import Image

    from training import edits

    drawn = edits.draw_edits(np.random.default_rng(SEED), COUNT, held=True)
    before, _ = edits.render(drawn, SEED)
    folder, lines = ROOT / "prompts/edits", []
    folder.mkdir(exist_ok=True)
    for i, (edit, picture) in enumerate(zip(drawn, before, strict=True)):
        pixels = (255 * picture.permute(1, 2, 0) + 0.5).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i:02d}.jpg", quality=92, subsampling=0)
        line = {"prompt": edit.instruction, "image": f"edits/{i:02d}.jpg", "seed": SEED + i}
        lines.append(json.dumps(line | {"target_caption": str(edit.after)}) + "\n")
    (ROOT / "prompts/edits.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
