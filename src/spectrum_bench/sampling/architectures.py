"""Pipelines with random weights, built from their configuration: latency and memory without a download."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NotRequired, TypedDict

import diffusers
import torch
import transformers
from diffusers.pipelines import ltx2  # has parts that diffusers does not name itself

from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT

FOLDER = ROOT / "configs/architectures"
TOKENIZERS = ROOT / "assets/tiny/flux"
# The miniature's tokenizers stand in: their ids exist in any larger vocabulary, and a random encoder understands
# nothing. HunyuanVideo cuts off the 95 tokens of its template and divides by the number of tokens that are left. Only a
# tokenizer that falls back to bytes makes enough of them.
STAND_INS = {
    "CLIPTokenizer": "tokenizer",
    "GemmaTokenizer": "tokenizer_2",
    "LlamaTokenizerFast": "tokenizer",
    "PixtralProcessor": "tokenizer",
    "Qwen2TokenizerFast": "tokenizer",
    "T5TokenizerFast": "tokenizer_2",
}
CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content if message.content is string else message.content[0].text }}<|im_end|>
{% endfor %}"""  # for tokenizers with a template of a conversation, whose marks every model writes in another way


class Architecture(TypedDict):
    """configs/architectures/<name>.json.

    Attributes:
        _class_name: the class of the pipeline.
        parts: the configuration of each part, with its own `_class_name`.
        options: further arguments of the pipeline's constructor.
        parameters: for each model, the published "count" of its parameters and the "source" of that count.
        source: for each part, what its values were checked against.
        unchecked: the values that were not checked.
    """

    _class_name: str
    parts: dict[str, dict[str, Any]]
    options: NotRequired[dict[str, Any]]
    parameters: dict[str, dict[str, Any]]
    source: dict[str, str]
    unchecked: list[str]


def architecture(name: str) -> Architecture:
    """Read configs/architectures/<name>.json.

    Raises:
        UserError: no such file.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.json")))
        raise UserError(f"no architecture {name}: take one of {known}, or add configs/architectures/{name}.json")
    read: Architecture = json.loads(path.read_text(encoding="utf-8"))
    return read


def random_pipeline(name: str, *, dtype: str, device: str, vae_dtype: str | None = None) -> Any:
    """A diffusers pipeline of the full size with random weights, made directly on `device`, without network or copy.

    Use it for latency and memory alone. Its samples are noise and say nothing about quality. Neither do decisions that
    depend on features: a gate such as TeaCache's skips other steps than it does with the real weights. The dtypes are
    those that `from_pretrained` gives, including what a class keeps in float32. The same name, dtype and device give
    the same weights.

    Args:
        name: the name of a file in configs/architectures.
        dtype: the name of a torch dtype.
        device: "cuda", "cpu", or "meta" for shapes without memory.
        vae_dtype: the VAE's dtype, if it differs.

    Raises:
        UserError: there is no such architecture.
    """
    given = architecture(name)
    own = {"vae": vae_dtype or dtype}
    with _seeded(torch.device(device)):
        parts = {
            part: _build(config, dtype=getattr(torch, own.get(part, dtype)), device=device)
            for part, config in given["parts"].items()
        }
    if "processor" in parts:
        parts["text_encoder"].config.image_token_id = parts["processor"].image_token_id  # a stand-in's
    pipe = getattr(diffusers, given["_class_name"])(**parts, **given.get("options", {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _build(config: Mapping[str, Any], *, dtype: torch.dtype, device: str) -> Any:
    """A tokenizer, a processor, a scheduler, a guider, or a model in eval mode."""
    values = {key: value for key, value in config.items() if key != "_class_name"}
    if config["_class_name"] in STAND_INS:
        return _tokenizer(config["_class_name"], **values)
    ours = getattr(diffusers, config["_class_name"], None) or getattr(ltx2, config["_class_name"], None)
    if ours is not None and not issubclass(ours, torch.nn.Module):
        return ours.from_config(values)  # a scheduler keeps its tables on the CPU, whatever the device
    kind = ours or getattr(transformers, config["_class_name"])
    if issubclass(kind, transformers.ProcessorMixin):
        return _processor(kind, **values)
    if issubclass(kind, (transformers.BaseImageProcessor, transformers.ByT5Tokenizer)):  # whose tokens are bytes
        return kind(**values)
    with torch.device(device), _default_dtype(dtype):
        if ours is not None:
            model = ours.from_config(values)
            keep = model._keep_in_fp32_modules or ()
        else:
            model = kind(kind.config_class(**values))
            keep = model._keep_in_fp32_modules if dtype == torch.float16 else ()
    for key, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype if set(key.split(".")).isdisjoint(keep) else torch.float32)
    return model.to(device).eval()


def _tokenizer(stands_for: str, **values: Any) -> Any:
    folder = TOKENIZERS / STAND_INS[stands_for]
    return transformers.AutoTokenizer.from_pretrained(folder, chat_template=CHAT, **values)


def _processor(kind: Any, *, tokenizer: dict[str, Any], image_processor: dict[str, Any]) -> Any:
    """What makes tokens of text and patches of pictures. Its stand-in tokenizer marks where a picture's tokens go."""
    tokens = _build(tokenizer, dtype=torch.float32, device="cpu")
    tokens.add_special_tokens({"additional_special_tokens": ["<|image_pad|>", "<|video_pad|>"]})
    patches = _build(image_processor, dtype=torch.float32, device="cpu")
    clips = transformers.Qwen2VLVideoProcessor()
    return kind(image_processor=patches, tokenizer=tokens, video_processor=clips, chat_template=CHAT)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Draw random numbers from seed 0. Afterwards torch's generators go on as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
