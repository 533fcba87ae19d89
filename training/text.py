"""The stage that teaches the text encoders which words of a caption belong together."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectrum_bench.miniature import world
from spectrum_bench.miniature.world import Scene
from training.fit import chance, fit
from training.students import Student


class Reader(nn.Module):
    """A text encoder with heads. From the state of each word a head reads the facts of the thing that the word belongs
    to; from the pooled state, if there is one, a head reads the facts of the whole caption."""

    FACTS = (
        list(world.SIZES),
        list(world.COLOURS),
        list(world.SHAPES),
        [None, *world.RELATIONS],  # its place relative to the other thing
        [None, *world.MOTIONS],
    )
    # the layer that the pipelines read; CLIP: -2
    STATES = {"T5EncoderModel": -1, "UMT5EncoderModel": -1, "LlamaModel": -3}

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.layer = encoder, self.STATES.get(type(encoder).__name__, -2)
        config = encoder.config
        self.words = nn.Linear(config.hidden_size, sum(map(len, self.FACTS)))
        ends = [*self.FACTS, *self.FACTS, world.BACKGROUNDS]
        pooled = config.projection_dim if "WithProjection" in type(encoder).__name__ else config.hidden_size
        self.whole = nn.Linear(pooled, sum(map(len, ends)))
        self.sizes = [len(f) for f in self.FACTS], [len(f) for f in ends]

    def forward(self, ids: Tensor, mask: Tensor) -> list[tuple[Tensor, ...]]:
        """ids (B, L) -> logits of each fact: of words, (B, L, n), and of the caption, (B, n), if there is a pooled
        state."""
        kwargs = {"attention_mask": mask} if self.layer == -3 else {}  # as the pipelines call them
        out = self.encoder(ids, output_hidden_states=True, **kwargs)
        logits = [self.words(out.hidden_states[self.layer]).split(self.sizes[0], -1)]
        pooled = getattr(out, "text_embeds", None) if "text_embeds" in out else out.get("pooler_output")
        return logits + ([self.whole(pooled).split(self.sizes[1], -1)] if pooled is not None else [])

    @classmethod
    def labels(cls, scene: Scene, tokens: int, first: int) -> tuple[Tensor, Tensor]:
        """(tokens, 5) facts of the thing that each word belongs to, and (11,) facts of the caption; -100 for none. Each
        word is one token; the first word is at `first`. Motion and relation belong to the first thing."""
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}
        spoken = str(scene).rsplit(" on a ", 1)[0].split(f" {scene.relation} ")  # the words of each thing
        lengths = [len(part.split()) for part in spoken]
        lengths[0] += len((scene.relation or "").split())
        words, whole = torch.full((tokens, 5), -100), torch.full((11,), -100)
        whole[10] = list(world.BACKGROUNDS).index(scene.background)
        for k, (thing, length) in enumerate(zip(scene.things, lengths, strict=True)):
            place = opposite[scene.relation] if k else scene.relation
            facts = (thing.size, thing.colour, thing.shape, place, None if k else scene.motion)
            numbers = torch.tensor([names.index(f) for names, f in zip(cls.FACTS, facts, strict=True)])
            words[first : first + length] = numbers
            whole[5 * k : 5 * k + 5] = numbers
            first += length
        return words, whole


def train_text(student: Student, cfg, device) -> None:
    """Train every text encoder to know which words belong together, before the denoiser is trained. Text encoders of
    real pipelines know language; a T5 that was trained by the denoiser's loss alone did not learn which of two things
    is red. Afterwards the encoders are frozen, as in the real pipelines."""
    recipe, pipe = cfg.stages.text, student.pipe
    for name in [n for n in pipe.components if n.startswith("text_encoder")]:
        tokenizer, reader = getattr(pipe, name.replace("text_encoder", "tokenizer")), Reader(getattr(pipe, name))

        def loss(step, tokenizer=tokenizer, reader=reader):
            scenes = world.draw_scenes(chance(cfg.seed, 8, step), recipe.batch, held=False, moving=cfg.frames > 1)
            batch = tokenizer([str(s) for s in scenes], padding="max_length", return_tensors="pt").to(device)
            first = int(batch.input_ids[0, 0] == tokenizer.bos_token_id)
            labels = [reader.labels(s, batch.input_ids.shape[1], first) for s in scenes]
            read = reader(batch.input_ids, batch.attention_mask)
            total = 0.0
            for logits, label in zip(read, map(torch.stack, zip(*labels, strict=True)), strict=False):
                label = label.to(device)
                total = total + sum(
                    F.cross_entropy(t.flatten(0, -2), label[..., i].flatten()) for i, t in enumerate(logits)
                )
            return total, {}

        fit(name, reader.to(device), loss, steps=recipe.steps, lr=recipe.lr, work=Path(cfg.work), ema=0.99)
