"""Writes the table of docs/models.md from configs/model: python scripts/models.py

A model's YAML has everything that its row says: `repo`, `needs`, `fps`, and in `page` the number of steps, what was
tried in the place of the real weights, and which of the page's algorithms and sites it refuses.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from spectrum_bench.paths import ROOT

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- models: python scripts/models.py -->", "<!-- end of models -->"
COLUMNS = ("model", "weights", "on a GPU", "tried as", "refuses")
USUAL_STEPS = 50  # configs/base.yaml
# (whether a picture is given, whether a clip is made) -> the entry, and the prompt file of its command.
ENTRIES = {
    (False, False): ("text_to_image", "prompts/shapes.txt"),
    (False, True): ("text_to_video", "prompts/moving.txt"),
    (True, False): ("edit_image", "edits.jsonl"),
    (True, True): ("image_to_video", "frames.jsonl"),
}


def models() -> dict[str, dict[str, Any]]:
    """The nodes of all models but the miniatures, by name."""
    paths = sorted((ROOT / "configs/model").glob("*.yaml"))
    nodes = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}
    return {name: node for name, node in nodes.items() if not name.startswith("tiny-")}


def steps(node: dict[str, Any]) -> int:
    """How many steps the model's own page takes."""
    return int(node["page"].get("steps", USUAL_STEPS))


def row(name: str, node: dict[str, Any]) -> str:
    """The model's line of the table."""
    if not node.get("page"):
        sys.exit(f"error: configs/model/{name}.yaml has no page: write page: {{tried: random, refuses: []}}")
    entry, prompts = ENTRIES[bool(node.get("needs")), "fps" in node]
    command = f"python src/{entry}.py model={name} algo=spectrum prompt_file={prompts}"
    command += f" num_inference_steps={steps(node)}" if steps(node) != USUAL_STEPS else ""
    refuses = ", ".join(f"`{word}`" for word in node["page"]["refuses"]) or "nothing of these"
    return f"| `{name}` | {node['repo']} | `{command}` | {node['page']['tried']} | {refuses} |"


def page(text: str) -> str:
    """The page with its table anew."""
    before, _, rest = text.partition(BEGIN)
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *(row(*each) for each in models().items())]
    return before + "\n".join([BEGIN, *lines, END]) + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
