"""One training loop for every stage: optimisers, schedule, averaged weights, checkpoints, several processes."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def ranks() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def chance(seed: int, stage: int, step: int) -> np.random.Generator:
    """Random numbers that depend only on seed, stage, step and rank, so that a resumed run draws the same ones."""
    return np.random.default_rng((seed, stage, step, ranks()[0]))


class Muon(torch.optim.Muon):
    """Torch's Muon, also for convolutions: a kernel is taken as a matrix, (out, in x extent)."""

    def __init__(self, kernels: list[nn.Parameter], **kwargs):
        self.kernels = kernels
        super().__init__([nn.Parameter(k.detach().view(len(k), -1)) for k in kernels], **kwargs)  # views, not copies

    def step(self):
        for matrix, kernel in zip(self.param_groups[0]["params"], self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        super().step()


def _optimisers(model: nn.Module, lr: float, muon: Callable[[str, Tensor], bool]) -> list[torch.optim.Optimizer]:
    matrices, rest = [], []
    for name, p in model.named_parameters():
        (matrices if muon(name, p) else rest).append(p)
    optimisers = [torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)]
    if matrices:
        optimisers.append(Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return optimisers


def _average_gradients(model: nn.Module, world: int) -> None:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


class Checkpoint:
    """Weights, their average and the optimisers' states in one file."""

    def __init__(self, path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]):
        self.path, self.model, self.optimisers = path, model, optimisers
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def load(self) -> int:
        """Load the file, if there is one. Returns the number of steps that are done."""
        if not self.path.exists():
            return 0
        saved = load_file(self.path)
        self.model.load_state_dict(_below("model.", saved))
        self.average = {name: value.to(self.average[name]) for name, value in _below("ema.", saved).items()}
        for i, optimiser in enumerate(self.optimisers):
            state = optimiser.state_dict()
            for key, value in _below(f"opt{i}.", saved).items():
                index, name = key.split(".")
                state["state"].setdefault(int(index), {})[name] = value
            optimiser.load_state_dict(state)
        return int(saved["step"])

    def save(self, step: int) -> None:
        tensors = {"step": torch.tensor(step)}
        for prefix, values in (("model", self.model.state_dict()), ("ema", self.average)):
            # clones, because T5 shares its embedding between two names
            tensors |= {f"{prefix}.{k}": v.clone(memory_format=torch.contiguous_format) for k, v in values.items()}
        for i, optimiser in enumerate(self.optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"opt{i}.{index}.{k}": v.contiguous() for k, v in state.items() if torch.is_tensor(v)}
        part = self.path.with_suffix(".part")
        save_file(tensors, part)
        part.replace(self.path)

    @torch.no_grad()
    def follow(self, weight: float) -> None:
        """Move the average towards the weights. The old average keeps the share `weight`."""
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - weight)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


class Log:
    """Every `every` steps, prints the means of the figures and the seconds for each step."""

    def __init__(self, stage: str, first: int, steps: int, every: int):
        self.stage, self.first, self.steps, self.every = stage, first, steps, every
        self.began = time.perf_counter()
        self.figures: dict[str, float] = {}

    def add(self, done: int, figures: dict) -> None:
        """Add the figures of step number `done`, counted from 1."""
        for key, value in figures.items():
            self.figures[key] = self.figures.get(key, 0.0) + float(torch.as_tensor(value).detach()) / self.every
        if done % self.every:
            return
        if ranks()[0] == 0:
            pace = (time.perf_counter() - self.began) / (done - self.first)
            shown = "  ".join(f"{key} {value:.4f}" for key, value in self.figures.items())
            now = time.strftime("%H:%M:%S")
            print(f"{self.stage} {done}/{self.steps}  {shown}  {pace:.3f} s/step  {now}", flush=True)
        self.figures = {}


def fit(
    stage: str,
    model: nn.Module,
    loss: Callable[[int], tuple[Tensor, dict]],
    *,
    steps: int,
    lr: float,
    work: Path,
    decay_from: float = 0.5,
    ema: float = 0.998,
    muon: Callable[[str, Tensor], bool] = lambda name, p: False,
    log_every: int = 50,
    save_every: int = 200,
) -> nn.Module:
    """Minimise `loss(step) -> (scalar, figures to print)`. Returns `model` with the averaged weights.

    The learning rate warms up over 50 steps, is constant until `decay_from * steps`, then falls linearly to 2 %.
    A checkpoint in `work/<stage>.safetensors` holds weights, average and optimiser state: a later call goes on
    from it, and a finished stage returns at once. With several processes (torchrun) gradients are averaged.
    `muon(name, parameter)` says which parameters Muon (Jordan et al. 2024) trains; AdamW trains the others.
    """
    rank, world = ranks()
    optimisers = _optimisers(model, lr, muon)
    checkpoint = Checkpoint(work / f"{stage}.safetensors", model, optimisers)
    first = checkpoint.load()
    log = Log(stage, first, steps, log_every)
    model.train()
    for step in range(first, steps):
        fall = 1 - 0.98 * max(0.0, step / steps - decay_from) / (1 - decay_from)
        _set_rate(optimisers, lr * min(1.0, (step + 1) / 50) * fall)
        value, figures = loss(step)
        value.backward()
        if world > 1:
            _average_gradients(model, world)
        if math.isfinite(nn.utils.clip_grad_norm_(model.parameters(), 1.0)):
            for optimiser in optimisers:
                optimiser.step()
        model.zero_grad(set_to_none=True)
        checkpoint.follow(min(ema, (step + 1) / (step + 10)))
        log.add(step + 1, {"loss": value, **figures})
        if rank == 0 and ((step + 1) % save_every == 0 or step + 1 == steps):
            checkpoint.save(step + 1)
    model.load_state_dict(checkpoint.average)
    return model.eval().requires_grad_(False)


def _set_rate(optimisers: list[torch.optim.Optimizer], lr: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr
