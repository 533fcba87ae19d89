"""One training loop for every stage: optimisers, schedule, averaged weights, checkpoints, several processes."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def ranks() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Muon(torch.optim.Muon):
    """Torch's, for the kernels of convolutions as well: each is a matrix, (out, in x its extent)."""

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
    """Minimise `loss(step) -> (scalar, figures to print)`, leave the averaged weights in `model` and return it.

    The learning rate warms up over 50 steps, is constant until `decay_from * steps`, then falls linearly to 2 %.
    A checkpoint in `work/<stage>.safetensors` holds weights, average and optimiser state: a later call goes on
    from it, and a finished stage returns at once. With several processes (torchrun) gradients are averaged.
    `muon(name, parameter)` says which parameters Muon (Jordan et al. 2024) trains; AdamW trains the others.
    """
    rank, world = ranks()
    path = work / f"{stage}.safetensors"
    optimisers = _optimisers(model, lr, muon)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    start = 0
    if path.exists():
        saved = load_file(path)
        start = int(saved["step"])
        model.load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
        average = {k[4:]: v.to(average[k[4:]]) for k, v in saved.items() if k.startswith("ema.")}
        for i, optimiser in enumerate(optimisers):
            state = optimiser.state_dict()
            for k, v in saved.items():
                if k.startswith(f"opt{i}."):
                    _, index, name = k.split(".")
                    state["state"].setdefault(int(index), {})[name] = v
            optimiser.load_state_dict(state)

    def save(step):
        tensors = {"step": torch.tensor(step)}
        tensors |= {
            f"model.{k}": v.clone(memory_format=torch.contiguous_format) for k, v in model.state_dict().items()
        }  # clones: T5 shares its embedding
        tensors |= {f"ema.{k}": v.clone(memory_format=torch.contiguous_format) for k, v in average.items()}
        for i, optimiser in enumerate(optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"opt{i}.{index}.{k}": v.contiguous() for k, v in state.items() if torch.is_tensor(v)}
        part = path.with_suffix(".part")
        save_file(tensors, part)
        part.replace(path)

    model.train()
    began, figures = time.perf_counter(), {}
    for step in range(start, steps):
        fall = 1 - 0.98 * max(0.0, step / steps - decay_from) / (1 - decay_from)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 50) * fall
        value, extra = loss(step)
        value.backward()
        if world > 1:
            _average_gradients(model, world)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if math.isfinite(norm):
            for optimiser in optimisers:
                optimiser.step()
        model.zero_grad(set_to_none=True)
        for k, v in {"loss": value, **extra}.items():
            figures[k] = figures.get(k, 0.0) + float(torch.as_tensor(v).detach()) / log_every
        keep = min(ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                if v.is_floating_point():
                    average[k].lerp_(v, 1 - keep)
        if (step + 1) % log_every == 0:
            if rank == 0:
                pace = (time.perf_counter() - began) / (step + 1 - start)
                shown = "  ".join(f"{k} {v:.4f}" for k, v in figures.items())
                print(
                    f"{stage} {step + 1}/{steps}  {shown}  {pace:.3f} s/step  {time.strftime('%H:%M:%S')}", flush=True
                )
            figures = {}
        if rank == 0 and ((step + 1) % save_every == 0 or step + 1 == steps):
            save(step + 1)
    model.load_state_dict(average)
    return model.eval().requires_grad_(False)
