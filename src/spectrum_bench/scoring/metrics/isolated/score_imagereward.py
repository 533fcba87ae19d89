"""ImageReward of every sample in a manifest.

score_imagereward.py <manifest> <results> <ImageReward.pt> <med_config.json> <vocab.txt> [<tokens>]

The package reads 35 tokens of a prompt. With <tokens> it reads so many, and the score is named imagereward_<tokens>.

Runs by itself: its packages cannot live beside the transformers of requirements.txt.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.14.1",
#   "torchvision==0.29.1",
#   "numpy==1.26.4",
#   "pillow>=10",
#   "image-reward==1.5",
#   "timm==0.6.13",
#   "fairscale==0.4.13",
#   "transformers==4.33.2",
#   "tokenizers==0.13.3",
#   "huggingface_hub==0.36.2",
#   "diffusers==0.31.0",
#   "accelerate==1.1.1",
#   "datasets==3.6.0",
#   "pyarrow==20.0.0",
#   "pandas==2.3.3",
#   "openai-clip==1.0.1",
#   "ftfy==6.3.1",
#   "setuptools==80.10.2",
# ]
#
# # Checksum as the hub shows it.
# [[tool.spectrum-bench.weights]]
# url = "{hub}/THUDM/ImageReward/resolve/main/ImageReward.pt"
# to = "~/.cache/ImageReward"
# size = 1786880927
# sha256 = "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6"
#
# # BLIP's own, byte for byte.
# [[tool.spectrum-bench.weights]]
# url = "{hub}/THUDM/ImageReward/resolve/main/med_config.json"
# to = "~/.cache/ImageReward"
# size = 485
# sha256 = "d8b5029cc3c0124313d17009d043f0701bbe497f3721fa4ceb818720fe665326"
#
# # The tokenizer of BERT, at a commit. Its checksum is the one that several projects have pinned.
# [[tool.spectrum-bench.weights]]
# url = "{hub}/google-bert/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594/vocab.txt"
# to = "~/.cache/ImageReward"
# size = 231508
# sha256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
# ///

import json
import sys
from typing import Any

import torch
import transformers
from PIL import Image
from PIL.Image import Image as Picture


def load(weights: str, med_config: str, vocabulary: str) -> Any:
    """The package's own model with these weights. Its own loader ignores tensors that do not fit; here they are an
    error."""
    from ImageReward.ImageReward import ImageReward

    tokenizer: Any = transformers.BertTokenizer
    # the package asks for "bert-base-uncased": here it is a file
    original = tokenizer.from_pretrained
    tokenizer.from_pretrained = lambda *_, **__: tokenizer(vocabulary)
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = ImageReward(device=device, med_config=med_config)
    finally:
        tokenizer.from_pretrained = original
    state = torch.load(weights, map_location="cpu", weights_only=True)
    keys = model.load_state_dict(state, strict=False)
    lost = [key for key in (*keys.missing_keys, *keys.unexpected_keys) if not key.endswith("position_ids")]
    if lost:
        raise SystemExit(
            f"{weights} does not fit: {len(lost)} tensors have no partner, e.g. {lost[0]}; download it again"
        )
    return model.to(device).eval()


def picture(path: str) -> Picture:
    with Image.open(path) as image:
        return image.convert("RGB")


def lengthen(model: Any, tokens: int) -> None:
    """Make the model read so many tokens, whatever its `score` asks of the tokenizer."""
    tokenizer = model.blip.tokenizer
    model.blip.tokenizer = lambda *given, **named: tokenizer(*given, **(named | {"max_length": tokens}))


def main(manifest: str, results: str, weights: str, med_config: str, vocabulary: str, tokens: str = "") -> None:
    model = load(weights, med_config, vocabulary)
    if tokens:
        lengthen(model, int(tokens))
    name = f"imagereward_{tokens}" if tokens else "imagereward"
    with open(manifest, encoding="utf-8") as lines, open(results, "a", encoding="utf-8") as out:
        for line in lines:
            sample = json.loads(line)
            result: dict[str, Any] = {"id": sample["id"]}
            try:
                with torch.inference_mode():
                    result[name] = float(model.score(sample["prompt"], picture(sample["path"])))
            except Exception as error:  # a bad sample must not stop the others
                result["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
