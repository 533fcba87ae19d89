"""What the small pipelines share: sizes, drawn embeddings, a picture and a scheduler."""

from typing import Any

import diffusers
import torch
from PIL import Image

SIZES = dict(num_attention_heads=2, attention_head_dim=16)
Small = tuple[Any, dict[str, Any]]  # a pipeline and the arguments of its call


def text(length: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(1, length, 24, generator=torch.Generator().manual_seed(seed))


PICTURE = Image.new("RGB", (64, 64), (200, 30, 30))
PAIR = dict(prompt_embeds=text(5), negative_prompt_embeds=text(5, seed=8))
MASKS = dict(prompt_attention_mask=torch.ones(1, 5), negative_prompt_attention_mask=torch.ones(1, 5))  # of PAIR
POOLED = dict(prompt_embeds=text(5), pooled_prompt_embeds=text(1)[:, 0])
POOLED_PAIR = POOLED | PAIR | dict(negative_pooled_prompt_embeds=text(1, seed=8)[:, 0])


def flow(**config: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)
