"""ImageReward of every sample in a manifest.

score_imagereward.py <manifest> <results> <ImageReward.pt> <med_config.json> <vocab.txt>

Runs by itself in the environment of configs/environments/imagereward.txt.
"""

import json
import sys


def load(weights: str, med_config: str, vocabulary: str):
    """The package's own model with these weights, every one of which must find its place: its own loader is silent
    about those that do not."""
    import torch
    import transformers
    from ImageReward.ImageReward import ImageReward

    # the package asks for "bert-base-uncased": here it is a file
    original = transformers.BertTokenizer.from_pretrained
    transformers.BertTokenizer.from_pretrained = lambda *_, **__: transformers.BertTokenizer(vocabulary)
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = ImageReward(device=device, med_config=med_config)
    finally:
        transformers.BertTokenizer.from_pretrained = original
    state = torch.load(weights, map_location="cpu", weights_only=True)
    found = model.load_state_dict(state, strict=False)
    lost = [key for key in (*found.missing_keys, *found.unexpected_keys) if not key.endswith("position_ids")]
    if lost:
        raise SystemExit(
            f"{weights} does not fit: {len(lost)} tensors have no partner, e.g. {lost[0]}; download it again"
        )
    return model.to(device).eval()


def picture(path: str):
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def main(manifest: str, results: str, *files: str) -> None:
    import torch

    model = load(*files)
    with open(manifest, encoding="utf-8") as lines, open(results, "a", encoding="utf-8") as out:
        for line in lines:
            sample = json.loads(line)
            try:
                with torch.inference_mode():
                    found = {"imagereward": float(model.score(sample["prompt"], picture(sample["path"])))}
            except Exception as error:  # one bad sample must not lose the others
                found = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps({"id": sample["id"]} | found), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
