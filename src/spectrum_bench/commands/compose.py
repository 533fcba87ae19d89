"""From a configuration composed by Hydra to typed settings and to the algorithm that they name."""

import hashlib
import inspect
import pkgutil
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from spectrum_bench.commands.list_ import overview
from spectrum_bench.commands.targets import check_plugins, check_targets
from spectrum_bench.commands.words import nearest
from spectrum_bench.errors import BadValue, UserError
from spectrum_bench.paths import CALIBRATION, locate
from spectrum_bench.sampling import reading
from spectrum_bench.sampling.limits import check_name, check_path
from spectrum_bench.sampling.reading import Damaged, check, parse_json, read_text
from spectrum_bench.sampling.records import read_records
from spectrum_bench.sampling.settings import Part, RunSettings

if TYPE_CHECKING:  # composing and refusing a configuration need no torch
    from spectrum_bench.caching.algorithm import Algorithm


class Constants(TypedDict, total=False):
    """What methods read of configs/calibration/<algo>/<model>.json."""

    weights: str | None
    steps: int
    polynomial: list[float] | list[list[float]]
    first: int
    last: int
    ratios: list[float]
    retention: float
    always: list[int]
    timesteps: list[float]
    latent: list[float]
    time: list[float]
    solvers: list[str]
    mask: list[int]
    coefficients: list[list[float]]
    channels: list[int]
    kinds: list[str]
    errors: list[list[list[float | None]]]
    outputs: list[list[float]]
    ridge: float


A_STEP = ("ratios", "timesteps", "latent", "time")  # one number for each step that was measured
LONGEST = 80  # characters of a folder that is named by itself
UPSTREAM = ("window_size", "flex_window", "warmup_steps")  # keys of upstream, which schedules and forecasters may read


def calibrated(method: str, key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    """${calibrated:<method>,<key>}: a constant measured for the composed model, or the default."""
    model = _root_.model.name
    check_name("model.name", model)
    return read_calibration(CALIBRATION / method / f"{model}.json").get(key, default)


def read_calibration(path: Path) -> dict[str, Any]:
    """What a model was measured for; nothing where it was not.

    Raises:
        UserError: the file is damaged.
    """
    try:
        constants: dict[str, Any] = parse_json(read_text(path, reading.RECORD))
        check(dict[str, Any], constants)
        known = {key: value for key, value in constants.items() if key in Constants.__annotations__}
        check(Constants, known)
        lengths = {len(known[key]) for key in A_STEP if key in known}
        if lengths and (len(lengths) > 1 or lengths != {constants.get("steps", max(4, *lengths))}):
            raise Damaged(f"{' and '.join(key for key in A_STEP if key in known)} are not one number a step")
    except FileNotFoundError:
        return {}
    except Damaged as reason:
        raise UserError(f"{path} is damaged: measure again with src/calibrate.py ({reason})") from None
    return constants


def most_frequent(folder: str) -> list[int]:
    """${most_frequent:<folder>}: the computed steps that most samples of a run have; of those that equally many have,
    the ones whose number is nearest to the mean.

    Raises:
        UserError: the folder holds no run.
    """
    masks = Counter(computed_steps(folder))
    mean = sum(len(mask) * count for mask, count in masks.items()) / masks.total()
    ordered = sorted(masks, key=lambda mask: (-masks[mask], abs(len(mask) - mean), mask))
    return list(ordered[0])


def consensus(folder: str) -> list[int]:
    """${consensus:<folder>}: the steps that most samples of a run compute, as many as they compute in the mean; of
    steps that equally many compute, the earlier ones.

    Raises:
        UserError: the folder holds no run.
    """
    masks = computed_steps(folder)
    counts = Counter(step for mask in masks for step in mask)
    ordered = sorted(counts, key=lambda step: (-counts[step], step))
    return sorted(ordered[: round(counts.total() / len(masks))])


def computed_steps(folder: str) -> list[tuple[int, ...]]:
    """Of each sample of a run."""
    return [tuple(record.computed_steps) for record in read_records(locate(check_path("of", folder)))]


def swept(*keys: str, _root_: DictConfig) -> str:
    """${swept:<key>,...}: a run of a sweep by model, algorithm and the values of these keys; beyond LONGEST characters
    the values' hash."""
    values = {key: OmegaConf.select(_root_, key) for key in keys}
    choices = HydraConfig.get().runtime.choices
    plain = {key: choices.get(key) if isinstance(value, DictConfig) else value for key, value in values.items()}
    first = f"{_root_.model.name}_{_root_.algo.name}"
    rest = re.sub(r"[^\w=,.+@-]", "-", ",".join(f"{key}={value}" for key, value in plain.items()))
    name = f"{first}_{rest}"
    return name if len(name) <= LONGEST else f"{first}_{hashlib.sha256(rest.encode()).hexdigest()[:12]}"


OmegaConf.register_new_resolver("calibrated", calibrated, replace=True)
OmegaConf.register_new_resolver("choices", overview, replace=True)
OmegaConf.register_new_resolver("consensus", consensus, replace=True)
OmegaConf.register_new_resolver("most_frequent", most_frequent, replace=True)
OmegaConf.register_new_resolver("swept", swept, replace=True)


def settings_of(cfg: DictConfig) -> RunSettings:
    """The settings of a composed configuration.

    Raises:
        UserError: an upstream key that nobody reads, a value of the wrong kind, or code that is no method.
    """
    for group in ("model", "algo"):
        if OmegaConf.select(cfg, f"{group}.name") is None:
            raise BadValue(f"{group}.name is missing: write 'name: <its file's name>' into the YAML")
    check_upstream_keys(cfg)
    config = resolved(cfg)
    words = HydraConfig.get().overrides.task
    check_targets(config, check_plugins(config.get("plugins"), list(words)))
    return RunSettings.from_config(config)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values; "site" is None where the algorithm has none."""
    plain: dict[str, Any] = {"site": None}
    values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return plain | dict(values)


def check_upstream_keys(cfg: DictConfig) -> None:
    """Refuse an upstream key on the command line that the chosen schedule and algorithm do not read.

    Raises:
        UserError: there is such a key.
    """
    given = {word.lstrip("+~").split("=", 1)[0] for word in HydraConfig.get().overrides.task}
    parts = [cfg[key] for key in ("schedule", "algo") if key in cfg]
    read = str([OmegaConf.to_container(part, resolve=False) for part in parts])
    readers = [key for key in UPSTREAM if f"${{{key}}}" in read]
    for key in UPSTREAM:
        if key in given and key not in readers:
            raise UserError(
                f"{key} is not read by algo={cfg.algo.name} with this schedule"
                + (f" (it reads {', '.join(readers)})" if readers else "")
                + ": leave it out, or set the schedule's own keys, e.g. schedule.interval=4"
            )


def build(settings: RunSettings) -> "Algorithm":
    """The algorithm that the settings name, checked as far as it can be without a model.

    Raises:
        UserError: a constant is unknown, a value is out of range, or the parts do not fit together.
    """
    from spectrum_bench.caching.algorithm import Algorithm
    from spectrum_bench.forecasters import reuse

    method = settings.method
    if method.site is not None and method.forecaster is None:
        raise BadValue(f"site and forecaster belong together: algo={method.name} has no forecaster")
    if method.site is None and method.forecaster is not None:
        raise BadValue(
            f"algo={method.name} has a forecaster and no site, so that nothing would be cached: add "
            "'- override /site@_global_.site: last_block' to the defaults of its YAML"
        )
    schedule = instantiate(method.schedule)
    site = instantiate(method.site) if method.site else None
    forecaster = instantiate(method.forecaster) if method.forecaster else reuse
    algorithm = Algorithm(method.name, schedule, forecaster, site)
    algorithm.check(settings.num_inference_steps)
    return algorithm


def instantiate(part: Part) -> Any:
    """The function with its constants, or the object, that a part names.

    Raises:
        UserError: the function does not exist, or does not take these constants.
    """
    from hydra.utils import instantiate as hydra_instantiate

    check_constants(part)
    try:
        made = hydra_instantiate(_without_revision(part.to_node()), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        missing = re.search(r"missing \d+ required .*", str(error.__cause__))
        if not missing:
            raise
        raise BadValue(f"{part.name} is {missing[0]}: add '_partial_: true' to its node, or its constants") from None
    if isinstance(made, partial):  # Hydra's own partial checks its policy at every call; once is enough
        return partial(made.func, *made.args, **made.keywords)
    return made


def check_constants(part: Part) -> None:
    """Check that the target can be imported and takes the constants.

    Raises:
        BadValue: it cannot, or does not.
    """
    try:
        target = pkgutil.resolve_name(part.target)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadValue(f"_target_: {part.target} cannot be imported: {error}") from None
    home = part.target.rpartition(".")[0]
    if home.startswith("spectrum_bench.") and getattr(target, "__module__", None) != home:
        raise BadValue(f"_target_: {part.target} is no part of a method: {home} only uses it")
    if not callable(target):
        raise BadValue(f"_target_: {part.target} is no function or class")
    parameters = inspect.signature(target).parameters
    for name, value in part.constants.items():
        if name not in parameters:
            raise BadValue(f"{part.name} takes no {name}{nearest(name, list(parameters))}")
        if isinstance(value, Part):
            check_constants(value)


def _without_revision(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return {key: _without_revision(value) for key, value in node.items() if key != "revision" or "_target_" not in node}
