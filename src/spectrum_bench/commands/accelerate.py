"""From Python: any algorithm of configs/algo on your own pipeline."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.session import Session, denoisers
from spectrum_bench.commands.compose import UPSTREAM, build, resolved
from spectrum_bench.commands.entry import explain
from spectrum_bench.commands.list_ import choices, describe
from spectrum_bench.commands.words import nearest
from spectrum_bench.errors import UserError
from spectrum_bench.paths import CONFIGS, MODELS, locate
from spectrum_bench.sampling.architectures import FOLDER, architecture
from spectrum_bench.sampling.settings import DESCRIBED, RunSettings
from spectrum_bench.sampling.steps import at_step_end

UNKNOWN = "your-model"  # under this name no algorithm has constants


def algorithms() -> dict[str, str]:
    """Every algorithm that `accelerate` takes: its name and a line about it."""
    return {choice.name: describe(choice) for choice in choices("algo")}


def accelerate(
    pipe: Any,
    algo: str,
    *,
    num_inference_steps: int,
    model: str | None = None,
    schedule: str | None = None,
    site: str | None = None,
    history: str | None = None,
    correct: str | None = None,
    **constants: Any,
) -> "Accelerated":
    """Run a diffusers pipeline under an algorithm.

        with accelerate(pipe, "spectrum", w=0.5, num_inference_steps=50) as run:
            image = run(prompt, guidance_scale=3.5).images[0]   # or pipe(..., callback_on_step_end=run.callback)
        print(run.computed_steps)

    Args:
        algo: a name in configs/algo.
        num_inference_steps: the number of steps of each call.
        model: the name in configs/model whose constants a calibrated method reads. By default it is the model whose
            denoiser has the same class and size.
        schedule, site: names in configs/schedule and configs/site that replace the algorithm's own.
        history: a name in configs/history: how a site holds the features of computed steps.
        correct: a name in configs/correct: computed steps correct what skipped steps before them assumed.
        constants: a key of the algorithm, its schedule, site or correction (w=0.5, interval=4), in this order, or one
            of upstream's window_size, flex_window and warmup_steps.

    Raises:
        UserError: a name or a constant does not exist, a value is out of range, or the algorithm does not fit the
            denoiser.
    """
    words = [f"algo={algo}", f"num_inference_steps={num_inference_steps}"]
    options = {"schedule": schedule, "site": site, "history": history, "correct": correct}
    words += [f"{key}={name}" for key, name in options.items() if name]
    with _composing() as compose:
        plain = compose(words)
        words += [f"{_key(plain, name)}={_word(value)}" for name, value in constants.items()]
        name = model or recognise(pipe) or UNKNOWN
        cfg = compose([*words, f"model.name={name}"])
    settings = RunSettings.from_config(resolved(cfg))
    return Accelerated(pipe, build(settings), num_inference_steps)


class Accelerated:
    """A pipeline under an algorithm, inside a `with` block.

    Attributes:
        session: the session of the newest call.
    """

    def __init__(self, pipe: Any, algorithm: Algorithm, num_inference_steps: int):
        self.pipe, self.algorithm, self.num_inference_steps = pipe, algorithm, num_inference_steps
        self.session: Session
        self._undo = ExitStack()

    def __enter__(self) -> "Accelerated":
        self._attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def __call__(self, *args: Any, callback_on_step_end: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        """Call the pipeline with the `num_inference_steps` given to `accelerate`. Each call begins with an empty
        cache."""
        if self.session.step:
            self._undo.close()
            self._attach()

        def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            tensors = self.callback(pipe, step, timestep, tensors)
            return callback_on_step_end(pipe, step, timestep, tensors) if callback_on_step_end else tensors

        with ExitStack() as undo:
            steps = {"num_inference_steps": self.num_inference_steps, **at_step_end(self.pipe, step_done, undo)}
            return self.pipe(*args, **steps | kwargs)

    def callback(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """If you call the pipeline itself, pass this as `callback_on_step_end`."""
        return self.session.callback(pipe, step, timestep, tensors)

    @property
    def computed_steps(self) -> list[int]:
        """The computed steps of the newest call."""
        return self.session.computed_steps

    @property
    def cache_bytes(self) -> int:
        """The most bytes that the newest call held for its forecasts and decisions."""
        return self.session.cache_bytes

    def _attach(self) -> None:
        self.session = self._undo.enter_context(self.algorithm.attach(self.pipe, self.num_inference_steps))


def recognise(pipe: Any) -> str | None:
    """The model in configs/model whose denoiser has the same class and size as this pipeline's; None if there is none.
    Of several, such as FLUX.1-dev and FLUX.1-Kontext, it is one of the same class of pipeline, or the shortest name."""
    networks = denoisers(pipe)
    if not networks:
        return None
    part, network = next(iter(networks.items()))
    config: Any = network.config
    given = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    same: list[tuple[bool, int, str]] = []
    for path in sorted(MODELS.glob("*.yaml")):
        kind, known = _configured(yaml.safe_load(path.read_text(encoding="utf-8")), part)
        if known.get("_class_name") == type(network).__name__ and all(
            _plain(given[key]) == _plain(value) for key, value in known.items() if key in given
        ):
            same.append((kind != type(pipe).__name__, len(path.stem), path.stem))
    return min(same)[-1] if same else None


def _configured(model: Mapping[str, Any], part: str) -> tuple[str | None, dict[str, Any]]:
    """The class of a model's pipeline and the configuration of its denoiser, from the folder of its weights or from
    configs/architectures."""
    folder = locate(str(model.get("repo")))
    if (folder / part / "config.json").is_file():
        index, config = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("model_index.json", f"{part}/config.json")
        )
        return index.get("_class_name"), config
    if not (FOLDER / f"{model['name']}.json").is_file():
        return None, {}
    known = architecture(model["name"])
    return known["_class_name"], dict(known["parts"].get(part) or {})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


@contextmanager
def _composing() -> Iterator[Callable[[list[str]], DictConfig]]:
    """Yields a function that composes configs/base.yaml. The caller's own Hydra application stays as it was."""
    around = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):

            def compose(words: list[str]) -> DictConfig:
                try:
                    return hydra.compose("base", words)
                except (HydraException, OmegaConfBaseException) as error:
                    raise UserError(explain("base", error)) from None

            yield compose
    finally:
        GlobalHydra.instance().hydra = around


def _key(cfg: DictConfig, name: str) -> str:
    """The dotted key of a constant: the algorithm's, its schedule's, its site's, or one of upstream's keys."""
    places = {key: key for key in UPSTREAM}
    # A key of the algorithm hides one of its schedule, that one hides one of its site, and so on.
    for group in ("history", "correct", "site", "schedule", "algo"):
        keys = [key for key in cfg.get(group) or {} if key not in DESCRIBED and not key.startswith("_")]
        places |= {key: f"{group}.{key}" for key in keys}
    if name in places:
        return places[name]
    known = list(places)
    raise UserError(f"algo={cfg.algo.name} has no {name}{nearest(name, known)}; it has {', '.join(known)}")


def _word(value: Any) -> str:
    """A value in the syntax of Hydra's command line."""
    return json.dumps(value) if not isinstance(value, str) else f"'{value}'"
