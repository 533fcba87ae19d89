"""What a model must be measured for before some algorithms can run on it: configs/calibration/<algo>/<model>.json."""

import inspect
import json
from collections.abc import Callable

import numpy as np
import torch
from omegaconf import DictConfig
from scipy.cluster.vq import kmeans2

from spectrum_bench.caching.session import cached, denoisers
from spectrum_bench.caching.sites.base import Site
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual
from spectrum_bench.errors import UserError
from spectrum_bench.forecasters import SOLVERS
from spectrum_bench.gates import moved, observing
from spectrum_bench.paths import CALIBRATION, locate
from spectrum_bench.sampling.clock import environment
from spectrum_bench.sampling.jobs import make_jobs, read_prompts
from spectrum_bench.sampling.models import identify, open_pipeline
from spectrum_bench.sampling.records import write_atomically
from spectrum_bench.sampling.settings import checked


@observing()
def always(step, T, seen, memory) -> bool:
    return True


@observing("modulated")
def recorder(step, T, seen, memory, *, changes: list) -> bool:
    """Computes every step and keeps how far TeaCache's signal moved."""
    changes.append(moved(memory, "modulated", seen["modulated"]))
    return True


def trajectory(pipe, job, num_steps: int, arguments: dict, gate: Callable, site: Site) -> list[torch.Tensor]:
    """The site's feature at every step of one uncached sample, in float32."""
    keep_all = lambda times, t: np.ones(len(times))  # noqa: E731
    with cached(pipe, schedule=gate, forecaster=keep_all, site=site, num_steps=num_steps) as session:
        generator = torch.Generator().manual_seed(job.seed)
        on_step = {"num_inference_steps": num_steps, "callback_on_step_end": session.callback}
        pipe(job.prompt, generator=generator, output_type="latent", **on_step, **arguments)
    branch = next(iter(session.branches.values()))
    return [row.float() for row in branch.buffers["stack"].rows]


# ---------------------------------------------------------------------------------------------------------------------
# One function a method: (pipe, jobs, num_steps, arguments, settings) -> what the algorithm reads from the file


def teacache(pipe, jobs: list, num_steps: int, arguments: dict, settings: dict) -> dict:
    """TeaCache's polynomial (arXiv:2411.19108, section 3.3): from the relative L1 changes of the timestep-modulated
    input to those of the block stack's output, by least squares over the steps of all samples.

    Raises:
        UserError: R^2 below 0.8, when the signal does not tell how far the output moves.
    """
    pairs = [changes(pipe, job, num_steps, arguments) for job in jobs]
    x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
    polynomial, r2 = fit_polynomial(x, y, settings["degree"])
    print(f"{len(jobs)} prompts x {num_steps} steps: input changes {x.min():.4f} to {x.max():.4f}, R^2 = {r2:.3f}")
    if r2 < 0.8:
        raise UserError(
            f"R^2 = {r2:.3f} is below 0.8: this signal does not predict this model's output; nothing written"
        )
    return {"r2": round(r2, 4), "polynomial": polynomial, "first": 1, "last": 1}


def changes(pipe, job, num_steps: int, arguments: dict) -> tuple[np.ndarray, np.ndarray]:
    """Relative L1 changes from each step to the next, (T - 1,) each: of the timestep-modulated input and of the block
    stack's output, along one uncached trajectory."""
    signal: list[float] = []

    @observing("modulated")
    def gate(step, T, seen, memory):
        return recorder(step, T, seen, memory, changes=signal)

    rows = trajectory(pipe, job, num_steps, arguments, gate, LastBlock())
    output = [float((b - a).abs().mean() / a.abs().mean()) for a, b in zip(rows, rows[1:], strict=False)]
    calls = len(signal) // num_steps  # a step: the first is the branch whose rows these are
    return np.array(signal[::calls][1:]), np.array(output)


def fit_polynomial(x: np.ndarray, y: np.ndarray, degree: int = 4) -> tuple[list[float], float]:
    """Least-squares polynomial, highest power first, and its R^2."""
    polynomial = np.polyfit(x, y, degree)
    r2 = 1 - np.sum((np.polyval(polynomial, x) - y) ** 2) / np.sum((y - y.mean()) ** 2)
    return [float(c) for c in polynomial], float(r2)


def magcache(pipe, jobs: list, num_steps: int, arguments: dict, settings: dict) -> dict:
    """MagCache's ratios (arXiv:2506.09045): of the norm of a token's stack residual to that of the step before, mean
    over tokens, here also over prompts (its authors take one); the first is 1."""
    each = np.array([ratios(trajectory(pipe, job, num_steps, arguments, always, StackResidual())) for job in jobs])
    mean, spread = each.mean(0), np.abs(each - each.mean(0)).max()
    print(f"{len(jobs)} prompts x {num_steps} steps: ratios {mean.min():.4f} to {mean.max():.4f}")
    print(f"no prompt is further than {spread:.4f} from the mean: the method stands on that being small")
    return {"ratios": [round(float(r), 5) for r in mean], "spread": round(float(spread), 5)}


def ratios(rows: list[torch.Tensor]) -> list[float]:
    norms = [row.norm(dim=-1) for row in rows]
    return [1.0] + [float((b / a).mean()) for a, b in zip(norms, norms[1:], strict=False)]


def sencache(pipe, jobs: list, num_steps: int, arguments: dict, settings: dict) -> dict:
    """SenCache's sensitivities (arXiv:2602.24208): |v(x', t) - v(x, t)| / |x' - x| and |v(x, t') - v(x, t)| / |t' - t|,
    from each step (x, t) of an uncached sample to the next (x', t'), mean over prompts. Its authors noise real videos;
    here the model's own samples serve. The last step has no next one and takes the values before it."""
    each = np.array([sensitivities(pipe, job, num_steps, arguments) for job in jobs])  # (prompts, T - 1, 3)
    t, latent, time = np.concatenate([each, each[:, -1:]], 1).mean(0).T
    spread = np.abs(each[..., 1:] / each[..., 1:].mean(0) - 1).max()
    print(f"{len(jobs)} prompts x {num_steps} steps: to the latent {latent.min():.3g} to {latent.max():.3g}, ", end="")
    print(f"to the timestep {time.min():.3g} to {time.max():.3g}; no prompt is further than {spread:.0%} from the mean")
    lists = {"timesteps": t, "latent": latent, "time": time}
    return {name: [float(f"{v:.6g}") for v in values] for name, values in lists.items()}


def sensitivities(pipe, job, num_steps: int, arguments: dict) -> list[tuple[float, float, float]]:
    """(t, to the latent, to the timestep) from each step to the next, of the first guidance branch."""
    found, before = [], None
    denoiser = next(iter(denoisers(pipe).values()))
    run, calls = denoiser.forward, [0]

    def forward(*args, **kwargs):
        nonlocal before
        out = run(*args, **kwargs)
        first, calls[0] = calls[0] == 0, calls[0] + 1
        if first:
            named = (
                dict(zip(list(inspect.signature(type(denoiser).forward).parameters)[1:], args, strict=False)) | kwargs
            )
            name = "hidden_states" if "hidden_states" in named else "sample"
            if before is not None:
                old, v = before
                x, t = old[name], old["timestep"]
                there = run(**old | {name: named[name]})[0]
                later = run(**old | {"timestep": named["timestep"]})[0]
                dx, dt = (named[name] - x).float().norm(), (named["timestep"] - t).float().abs().max()
                found.append((t.flatten()[0], (there - v).float().norm() / dx, (later - v).float().norm() / dt))
            before = named, out[0]
        return out

    def step_done(pipe, step, timestep, tensors):
        calls[0] = 0
        return tensors

    denoiser.forward = forward
    try:
        generator = torch.Generator().manual_seed(job.seed)
        on_step = {"num_inference_steps": num_steps, "callback_on_step_end": step_done}
        pipe(job.prompt, generator=generator, output_type="latent", **on_step, **arguments)
    finally:
        del denoiser.forward
    return [tuple(map(float, numbers)) for numbers in found]


def hyca(pipe, jobs: list, num_steps: int, arguments: dict, settings: dict) -> dict:
    """HyCa's clusters of channels and their solvers (arXiv:2510.04188, as far as its text tells): k-means on what is
    standardised of the channels' movements; of SOLVERS the one that errs least, over each step from those before it.

    Its authors look at the first steps of one prompt, we at all steps of some; the number of clusters is ours.

    Raises:
        UserError: a U-Net.
    """
    movements, errors = 0.0, 0.0
    for job in jobs:
        rows = torch.stack(trajectory(pipe, job, num_steps, arguments, always, LastBlock()))
        if rows.ndim != 4:
            raise UserError("hyca's channels are those of (B, L, D) tokens, and a U-Net's features are none")
        rows = rows.flatten(1, 2).double().cpu().numpy()  # (T, tokens, D)
        movements, errors = movements + described(rows), errors + solver_errors(rows)
    standard = (movements - movements.mean(0)) / (movements.std(0) + 1e-12)
    centres, clusters = kmeans2(standard, settings["clusters"], minit="++", rng=settings["seed"])
    names, solvers = list(SOLVERS), []
    for cluster in range(len(centres)):
        mine = errors[:, clusters == cluster]
        each = mine.mean(1) if mine.size else errors.mean(1)
        solvers.append(names[each.argmin()])
        told = ", ".join(f"{name} {e:.3g}" for name, e in zip(names, each / len(jobs), strict=True))
        print(f"cluster {cluster}: {mine.shape[1]} channels; squared error one step ahead: {told}")
    return {"solvers": solvers, "channels": clusters.tolist()}


def described(rows: np.ndarray) -> np.ndarray:
    """(D, 6) of a (T, tokens, D) trajectory: mean size of the first, second and third difference, energy, and how the
    second and third compare with the first."""
    size = [np.abs(np.diff(rows, n, axis=0)).mean((0, 1)) for n in (1, 2, 3)]
    energy = (rows**2).mean((0, 1))
    return np.stack([*size, energy, size[1] / (size[0] + 1e-12), size[2] / (size[0] + 1e-12)], 1)


def solver_errors(rows: np.ndarray) -> np.ndarray:
    """(solvers, D): mean squared error of each one's forecast of a step from all those before it."""
    errors = np.zeros((len(SOLVERS), rows.shape[2]))
    first = 4  # steps that every solver needs before its order is reached
    for t in range(first, len(rows)):
        times = np.arange(t, dtype=float)
        for i, solver in enumerate(SOLVERS.values()):
            forecast = np.tensordot(solver(times, t), rows[:t], 1)
            errors[i] += ((forecast - rows[t]) ** 2).mean(0) / (len(rows) - first)
    return errors


METHODS = {"teacache": teacache, "magcache": magcache, "sencache": sencache, "hyca": hyca}


def main(cfg: DictConfig) -> None:
    """Measure a model for one algorithm and write what that algorithm's schedule reads.

    Raises:
        UserError: an algorithm that needs no measuring, or one whose signal says nothing about this model.
    """
    algo = cfg.algo.name
    if algo not in METHODS:
        raise UserError(f"algo={algo} needs no calibration: choose of {', '.join(METHODS)}")
    plain, steps = checked(cfg), cfg.num_inference_steps
    if steps < 4:
        raise UserError(f"num_inference_steps={steps} are too few to measure anything by: take those of the runs")
    model = plain["model"]
    prompts = read_prompts(locate(cfg.prompt_file), cfg.total_prompt_num)
    weights = identify(model)
    pipe, device = open_pipeline(plain)
    if len(denoisers(pipe)) > 1:
        raise UserError(f"{model['name']} runs {' and '.join(denoisers(pipe))} by turns; constants are those of one")
    try:
        found = METHODS[algo](pipe, make_jobs(prompts, cfg.seed, {}), steps, model["arguments"], cfg)
    except ValueError as error:  # what the algorithm observes does not exist in this denoiser
        raise UserError(str(error)) from None
    measured = {"source": f"python src/calibrate.py algo={algo} model={model['name']}", "weights": weights}
    measured |= {"prompts": f"{len(prompts)} of {cfg.prompt_file}", "seed": cfg.seed, "steps": steps}
    known = environment(device, cfg.threads)
    measured |= {"device": known["device"], "versions": known["versions"], "git_sha": known["git_sha"]}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in (measured | found).items()]
    path = CALIBRATION / algo / f"{model['name']}.json"
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    print(f"written to {path}: algo={algo} model={model['name']} reads it")
