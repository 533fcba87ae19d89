"""The code that a configuration may name. Any other `_target_`, in our own nodes and in Hydra's, is refused before it
is imported or called: a configuration is data."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spectrum_bench.checks import brief
from spectrum_bench.errors import BadValue
from spectrum_bench.sampling.settings import MOVED

METHODS = r"spectrum_bench\.(schedules|(\w+_)?gates|forecasters|caching\.peers|caching\.sites\.[a-z]\w*)\.[A-Za-z]\w*"
LAUNCHERS = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
)
SWEEPERS = (
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
)
SAMPLERS = r"optuna\.samplers\.[A-Z]\w*Sampler"
# Values of Hydra's nodes are read before a run begins, so they may refer only to another key, the environment, the date
# and Hydra itself.
INTERPOLATION = re.compile(r"\$\{((hydra|now|oc\.env|oc\.select):)?[\w.,:%/ -]*\}")
HYDRA = ("launcher", "sweeper", "callbacks", "job_logging", "hydra_logging")  # the nodes below `hydra` that name code


def check_plugins(plugins: object, words: list[str]) -> tuple[str, ...]:
    """The user's own modules whose code a configuration may name.

    Args:
        words: the words of the command line. Only they may set `plugins`, because other people's YAML could otherwise
            allow its own code.

    Raises:
        BadValue: `plugins` is no list of modules, or was not set on the command line.
    """
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise BadValue(f"plugins={brief(plugins)} is no list of modules: write plugins=[my_methods]")
    for name in plugins:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise BadValue(f"plugins={brief(name)} is no module's name: write plugins=[my_methods]")
    if plugins and not any(word.lstrip("+").startswith("plugins=") for word in words):
        raise BadValue("plugins are code that runs: name them on the command line, plugins=[my_methods]")
    return tuple(plugins)


def check_targets(node: object, plugins: tuple[str, ...] = (), place: str = "") -> None:
    """Refuse every `_target_` below a resolved node that is no schedule, gate, forecaster or site.

    Raises:
        BadValue: there is one.
    """
    for key, target in _targets(node, place):
        name = MOVED.get(target, target) if isinstance(target, str) else ""
        if not (re.fullmatch(METHODS, name) or name.rpartition(".")[0] in plugins):
            raise BadValue(
                f"{key}={brief(target)} is no schedule, gate, forecaster or site of spectrum_bench: a module of your "
                "own needs plugins=[<module>]"
            )


def _targets(node: object, place: str) -> Iterator[tuple[str, object]]:
    items: Any = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        name = f"{place}.{key}" if place else str(key)
        if key == "_target_":
            yield name, value
        yield from _targets(value, name)


def check_hydra(cfg: DictConfig) -> None:
    """Refuse code that Hydra itself would call, except its known launchers and sweepers.

    Raises:
        BadValue: there is another launcher or sweeper, a callback, or a logging handler.
    """
    nodes = {name: plain(cfg.hydra._get_node(name), f"hydra.{name}") for name in HYDRA}
    if nodes["callbacks"]:
        raise BadValue(f"hydra.callbacks={brief(nodes['callbacks'])}: callbacks are code, and none is allowed")
    allowed = {"hydra.launcher._target_": LAUNCHERS, "hydra.sweeper._target_": SWEEPERS}
    for name in ("launcher", "sweeper"):
        for key, target in _targets(nodes[name], f"hydra.{name}"):
            sampler = key == "hydra.sweeper.sampler._target_" and re.fullmatch(SAMPLERS, str(target))
            if target not in allowed.get(key, ()) and not sampler:
                raise BadValue(f"{key}={brief(target)} is none of Hydra's known launchers and sweepers")
    sweeper = nodes["sweeper"] if isinstance(nodes["sweeper"], dict) else {}
    if sweeper.get("custom_search_space") is not None:
        raise BadValue("hydra.sweeper.custom_search_space is code, and none is allowed: use hydra.sweeper.params")
    params = sweeper.get("params")
    for key in params if isinstance(params, dict) else ():
        if str(key).lstrip("+~").startswith("hydra"):
            raise BadValue(f"hydra.sweeper.params: {brief(key)} is Hydra's own, and no setting of a run")
    for name in ("job_logging", "hydra_logging"):
        _check_logging(nodes[name], f"hydra.{name}")


def _check_logging(node: object, place: str) -> None:
    """Refuse handlers. Python's logging calls the values of `()` and `class`, and imports values that begin with ext://."""
    items: Any = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        name = f"{place}.{key}"
        calls = key == "()" or key == "class" and value != "logging.StreamHandler"
        text = str(value).lower() if isinstance(value, str) else ""
        if calls or ("://" in text and text not in ("ext://sys.stdout", "ext://sys.stderr")):
            raise BadValue(f"{name}={brief(value)}: a configuration may name no other handlers than those of a console")
        _check_logging(value, name)


def plain(node: Any, place: str) -> Any:
    """One of Hydra's own nodes as plain values. An interpolation that only a run can resolve stays as it is.

    Raises:
        BadValue: an interpolation could turn text into code.
    """
    for text in _texts(OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node._value()):
        if "$" in INTERPOLATION.sub("", text):
            raise BadValue(f"{place}: {brief(text)} is no plain value")
    return _resolved(node)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from _texts(key)
        yield from _texts(each)


def _resolved(node: Any) -> Any:
    try:
        node = node._maybe_dereference_node(throw_on_resolution_failure=True)
    except OmegaConfBaseException:
        return str(node._value())
    if OmegaConf.is_dict(node) and not node._is_none() and not node._is_missing():
        return {key: _resolved(node._get_node(key)) for key in node}
    if OmegaConf.is_list(node) and not node._is_none() and not node._is_missing():
        return [_resolved(node._get_node(i)) for i in range(len(node))]
    return node._value()
