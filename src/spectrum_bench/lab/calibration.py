"""Measures the constants that some algorithms need for each model: configs/calibration/<algo>/<model>.json."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from spectrum_bench.caching.algorithm import NOCACHE, Algorithm
from spectrum_bench.caching.session import Session, denoisers
from spectrum_bench.caching.sites.base import Site, replace_forward
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual
from spectrum_bench.decisions import Seen, gate
from spectrum_bench.distances import relative_change
from spectrum_bench.errors import UserError
from spectrum_bench.forecasters import SOLVERS, reuse
from spectrum_bench.gates import AccumulatedState
from spectrum_bench.lab import hindcast, l2p, rivals, smoothcache
from spectrum_bench.lab.finished import Finished
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Observer
from spectrum_bench.schedules import ALONE, Schedule, Starts, full
from spectrum_bench.signals import MODULATED


@dataclass(frozen=True)
class Fit:
    """Settings of the methods' fits.

    Attributes:
        passes: network passes of a sample under hindcast.
        degree: degree of TeaCache's polynomial.
        clusters: number of HyCa's clusters of channels.
        seed: seed of HyCa's k-means.
        solver: whose coefficients are measured as hindcast's.
        steps: hindcast's steps, or those of another solver; without any, hindcast's are searched.
        finished: what an earlier, killed calibration of hindcast has measured.
    """

    passes: int = 14
    degree: int = 4
    clusters: int = 4
    seed: int = 0
    solver: str = "hindcast"
    steps: Sequence[int] = ()
    finished: Finished = field(default_factory=Finished)


Run = Callable[..., Any]  # a denoiser's forward
Constants = dict[str, Any]  # the constants in configs/calibration/<algo>/<model>.json


class Features(Observer):
    """Keeps the site's feature of every step in the first guidance branch of the network that ran, in float32."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []

    def step_done(self, session: Session, step: int, latents: torch.Tensor) -> None:
        ran = (branch for (_, call), branch in session.branches.items() if call == 0 and branch.times[-1:] == [step])
        self.rows.append(next(ran).histories["stack"].features()[-1].float())


def trajectory(run: Uncached, job: Job, schedule: Schedule, site: Site) -> list[torch.Tensor]:
    """The site's feature at every step of one uncached sample, in float32."""
    algorithm, features = Algorithm("trajectory", schedule, reuse, site), Features()
    run.sampler(algorithm).watch(job, [features])
    return features.rows


# ---------------------------------------------------------------------------------------------------------------------
# One function a method


def teacache(run: Uncached, jobs: list[Job], fit: Fit) -> Constants:
    """TeaCache's polynomial (arXiv:2411.19108, section 3.3) maps the relative L1 changes of the timestep-modulated
    input to those of the block stack's output. It is fitted by least squares over the steps of all samples, for each of
    networks that run by turns.

    Raises:
        UserError: R^2 is below 0.8: the signal does not predict how far the output moves.
    """
    pairs = np.array([changes(run, job) for job in jobs])  # (prompts, 2, T - 1)
    polynomials, worst = [], 1.0
    for start, end in zip(run.starts, [*run.starts[1:], run.num_steps], strict=True):
        x, y = pairs[:, :, start : end - 1].swapaxes(0, 1).reshape(2, -1)
        polynomial, r2 = fit_polynomial(x, y, fit.degree)
        print(f"{len(jobs)} prompts, steps {start} to {end - 1}: ", end="")
        print(f"input changes {x.min():.4f} to {x.max():.4f}, R^2 = {r2:.3f}")
        if r2 < 0.8:
            raise UserError(
                f"R^2 = {r2:.3f} is below 0.8: this signal does not predict this model's output; nothing written"
            )
        polynomials.append(polynomial)
        worst = min(worst, r2)
    found = polynomials if len(polynomials) > 1 else polynomials[0]
    return {"r2": round(worst, 4), "polynomial": found, "first": 1, "last": 1}


def changes(run: Uncached, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Relative L1 changes from each step to the next, along one uncached trajectory: those of the timestep-modulated
    input and those of the block stack's output, (T - 1,) each."""
    signal: list[float] = []

    @gate(observes=(MODULATED,), state=AccumulatedState)
    def recorder(step: int, T: int, seen: Seen, state: AccumulatedState) -> bool:
        signal.append(relative_change(seen[MODULATED], state.modulated))
        state.modulated = seen[MODULATED]
        return True

    rows = trajectory(run, job, recorder(), LastBlock())
    output = [float((b - a).abs().mean() / a.abs().mean()) for a, b in zip(rows, rows[1:], strict=False)]
    calls = len(signal) // run.num_steps  # in each step; the first call belongs to the branch of `rows`
    return np.array(signal[::calls][1:]), np.array(output)


def fit_polynomial(x: np.ndarray, y: np.ndarray, degree: int = 4) -> tuple[list[float], float]:
    """Least-squares polynomial, highest power first, and its R^2."""
    polynomial = np.polyfit(x, y, degree)
    r2 = 1 - np.sum((np.polyval(polynomial, x) - y) ** 2) / np.sum((y - y.mean()) ** 2)
    return [float(c) for c in polynomial], float(r2)


def magcache(run: Uncached, jobs: list[Job], fit: Fit) -> Constants:
    """MagCache's ratios (arXiv:2506.09045): the norm of a token's stack residual divided by its norm one step before,
    mean over tokens. A network's first ratio is 1. Here it is also a mean over prompts; MagCache's authors use one."""
    each = np.array([ratios(trajectory(run, job, full, StackResidual()), run.starts) for job in jobs])
    mean, spread = each.mean(0), np.abs(each - each.mean(0)).max()
    print(f"{len(jobs)} prompts x {run.num_steps} steps: ratios {mean.min():.4f} to {mean.max():.4f}")
    print(f"no prompt is further than {spread:.4f} from the mean: the method stands on that being small")
    return {"ratios": [round(float(r), 5) for r in mean], "spread": round(float(spread), 5)}


def ratios(rows: list[torch.Tensor], starts: Starts = ALONE) -> list[float]:
    norms = [row.norm(dim=-1) for row in rows]
    pairs = enumerate(zip(norms, norms[1:], strict=False), 1)
    return [1.0] + [1.0 if step in starts else float((b / a).mean()) for step, (a, b) in pairs]


def sencache(run: Uncached, jobs: list[Job], fit: Fit) -> Constants:
    """SenCache's sensitivities (arXiv:2602.24208): |v(x', t) - v(x, t)| / |x' - x| and |v(x, t') - v(x, t)| / |t' - t|,
    from each step (x, t) of an uncached sample to the next (x', t'), mean over prompts. SenCache's authors add noise to
    real videos; we use the model's own samples. A network's last step has no next one and takes the values of the
    step before."""
    each = np.array([sensitivities(run, job) for job in jobs])  # (prompts, T - 1, 3)
    t, latent, time = np.concatenate([each, each[:, -1:]], 1).mean(0).T
    spread = np.abs(each[..., 1:] / each[..., 1:].mean(0) - 1).max()
    print(
        f"{len(jobs)} prompts x {run.num_steps} steps: to the latent {latent.min():.3g} to {latent.max():.3g}, ", end=""
    )
    print(f"to the timestep {time.min():.3g} to {time.max():.3g}; no prompt is further than {spread:.0%} from the mean")
    lists = {"timesteps": t, "latent": latent, "time": time}
    return {name: [float(f"{v:.6g}") for v in values] for name, values in lists.items()}


def sensitivities(run: Uncached, job: Job) -> list[tuple[float, float, float]]:
    """(t, sensitivity to the latent, sensitivity to the timestep) of each step but the last, in the first guidance
    branch."""
    observer = Sensitivities()
    run.sampler(NOCACHE).watch(job, [observer])
    return observer.measured


class Sensitivities(Observer):
    """Runs the denoiser two more times for each step: with the next step's latent, and with the next step's
    timestep."""

    def __init__(self) -> None:
        self.measured: list[tuple[float, float, float]] = []
        self.calls = 0  # calls in this step so far
        self.before: tuple[Run, dict[str, Any], torch.Tensor] | None = None  # the step's: network, arguments and output

    def attach(self, pipe: Any, session: Session, undo: ExitStack) -> None:
        for denoiser in denoisers(pipe).values():
            self._watch(denoiser, undo)

    def _watch(self, denoiser: torch.nn.Module, undo: ExitStack) -> None:
        run, names = denoiser.forward, list(inspect.signature(type(denoiser).forward).parameters)[1:]

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = run(*args, **kwargs)
            self.calls += 1
            if self.calls == 1:
                self._measure(run, dict(zip(names, args, strict=False)) | kwargs, out[0])
            return out

        replace_forward(denoiser, forward, undo)

    def _measure(self, run: Run, given: dict[str, Any], v: torch.Tensor) -> None:
        name = "hidden_states" if "hidden_states" in given else "sample"
        before, self.before = self.before, (run, given, v)
        if before is None or before[0] is not run:
            self.measured += self.measured[-1:]  # the last step of another network has no next one either
            return
        _, old, old_v = before
        at_next_latent = run(**old | {name: given[name]})[0]
        at_next_timestep = run(**old | {"timestep": given["timestep"]})[0]
        dx = (given[name] - old[name]).float().norm()
        dt = (given["timestep"] - old["timestep"]).float().abs().max()
        to_latent = (at_next_latent - old_v).float().norm() / dx
        to_timestep = (at_next_timestep - old_v).float().norm() / dt
        self.measured.append((float(old["timestep"].flatten()[0]), float(to_latent), float(to_timestep)))

    def step_done(self, session: Session, step: int, latents: torch.Tensor) -> None:
        self.calls = 0


def hyca(run: Uncached, jobs: list[Job], fit: Fit) -> Constants:
    """HyCa's clusters of channels and the solver of each (arXiv:2510.04188, as far as its text says). K-means groups
    the standardised features of the channels' movements (see `described`). A cluster's solver is the one of SOLVERS
    with the smallest error when it forecasts each step from the steps before it.

    HyCa's authors use the first steps of one prompt; we use all steps of several. The number of clusters is our choice.

    Raises:
        UserError: the denoiser is a U-Net.
    """
    movements, errors = np.array(0.0), np.array(0.0)
    for job in jobs:
        features = torch.stack(trajectory(run, job, full, LastBlock()))
        if features.ndim != 4:
            raise UserError("hyca's channels are those of (B, L, D) tokens, and a U-Net's features are none")
        rows = features.flatten(1, 2).double().cpu().numpy()  # (T, tokens, D)
        movements, errors = movements + described(rows), errors + solver_errors(rows)
    standard = (movements - movements.mean(0)) / (movements.std(0) + 1e-12)
    centres, clusters = kmeans2(standard, fit.clusters, minit="++", rng=fit.seed)
    names, solvers = list(SOLVERS), []
    for cluster in range(len(centres)):
        of_cluster = errors[:, clusters == cluster]
        means = of_cluster.mean(1) if of_cluster.size else errors.mean(1)
        solvers.append(names[means.argmin()])
        by_solver = ", ".join(f"{name} {e:.3g}" for name, e in zip(names, means / len(jobs), strict=True))
        print(f"cluster {cluster}: {of_cluster.shape[1]} channels; squared error one step ahead: {by_solver}")
    return {"solvers": solvers, "channels": clusters.tolist()}


def described(rows: np.ndarray) -> np.ndarray:
    """Six features of each channel's movement, (D, 6), from a (T, tokens, D) trajectory: the mean size of the first,
    second and third difference, the energy, and the second and third difference divided by the first."""
    size = [np.abs(np.diff(rows, n, axis=0)).mean((0, 1)) for n in (1, 2, 3)]
    energy = (rows**2).mean((0, 1))
    return np.stack([*size, energy, size[1] / (size[0] + 1e-12), size[2] / (size[0] + 1e-12)], 1)


def solver_errors(rows: np.ndarray) -> np.ndarray:
    """(solvers, D): each solver's mean squared error when it forecasts a step from all steps before it."""
    errors = np.zeros((len(SOLVERS), rows.shape[2]))
    first = 4  # steps that every solver needs before its order is reached
    for t in range(first, len(rows)):
        times = np.arange(t, dtype=float)
        for i, solver in enumerate(SOLVERS.values()):
            forecast = np.tensordot(solver(times, t), rows[:t], 1)
            errors[i] += ((forecast - rows[t]) ** 2).mean(0) / (len(rows) - first)
    return errors


def hindcasts(run: Uncached, jobs: list[Job], fit: Fit) -> Constants:
    """Hindcast's mask and coefficients; see lab/hindcast.py. Or those of another solver; see lab/rivals.py."""
    if fit.solver != "hindcast":
        return rivals.measure(run, jobs, fit.solver, fit.steps)
    return hindcast.calibrate(run, jobs, fit.passes, fit.finished, fit.steps)


def smooth(run: Uncached, jobs: list[Job], fit: Fit) -> Constants:
    """SmoothCache's error curves; see lab/smoothcache.py."""
    return smoothcache.calibrate(run, jobs)


def predictor(run: Uncached, jobs: list[Job], fit: Fit) -> Constants:
    """L2P's traced outputs; see lab/l2p.py."""
    return l2p.calibrate(run, jobs, fit.passes)


Method = Callable[[Uncached, list[Job], Fit], Constants]
METHODS: dict[str, Method] = {
    "teacache": teacache,
    "magcache": magcache,
    "sencache": sencache,
    "hyca": hyca,
    "hindcast": hindcasts,
    "smoothcache": smooth,
    "l2p": predictor,
}
BY_TURNS = [name for name in METHODS if name != "hyca"]  # whose constants are measured on each of two networks
