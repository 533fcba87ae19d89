"""The common part of entry scripts: Hydra's command line, and errors as one line."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import spectrum_bench.commands.compose  # noqa: F401  registers the resolver ${calibrated:...}
from spectrum_bench.commands.list_ import GROUPS, print_choices
from spectrum_bench.commands.words import fail, nearest, without_debug
from spectrum_bench.errors import INTERRUPTED, UserError
from spectrum_bench.paths import CONFIGS, environment_with_package


class Ended(Exception):
    """A run of a sweep has ended with this exit code. Hydra goes on with the other runs and then raises the first
    one."""


def hydra_entry(config_name: str, main: Callable[[DictConfig], Any]) -> Callable[[], None]:
    """The main function of an entry script: compose `configs/<config_name>.yaml` and call `main` with it."""

    @hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config_name)
    def job(cfg: DictConfig) -> Any:
        try:
            try:
                return main(cfg)  # a sweeper that searches wants its value
            except (UserError, OmegaConfBaseException) as error:
                fail(error)
        except SystemExit as end:
            if HydraConfig.get().mode == RunMode.MULTIRUN and end.code != INTERRUPTED:
                raise Ended(end.code) from None
            raise

    def entry() -> None:
        sys.argv[1:] = without_debug(sys.argv[1:])
        check_words(config_name, sys.argv[1:])
        os.environ["PYTHONPATH"] = environment_with_package()["PYTHONPATH"]  # a launcher's jobs find this package by it
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or Hydra shows a sweep's end like a bug
        try:
            job()
        except Ended as end:
            raise SystemExit(end.args[0]) from None
        except (HydraException, OmegaConfBaseException) as error:
            fail(UserError(explain(config_name, error)))

    return entry


def check_words(config_name: str, words: list[str]) -> None:
    """Compose once before Hydra does, to say in one line what is wrong with the words of the command line."""
    show_choices(words)
    overrides = [word for word in words if not word.startswith("-") and "=" in word]
    if any(word.startswith("-") and word not in ("-m", "--multirun") for word in words):
        return  # --help, --cfg and the like are Hydra's own
    strangers = [word for word in words if not word.startswith("-") and "=" not in word]
    if strangers:
        fail(UserError(f"'{strangers[0]}' is not key=value: see --help"))
    if {"-m", "--multirun"} & set(words):
        overrides = [word for each in overrides for word in first_choice(config_name, each)]
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        try:
            hydra.compose(config_name, overrides)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            fail(UserError(explain(config_name, error)))


def show_choices(words: list[str]) -> None:
    """If a word is like `algo=?`, print the choices of the group and end the command."""
    for word in words:
        group, _, value = word.partition("=")
        if value == "?" and group in GROUPS.values():
            print_choices(group)
            raise SystemExit(0)


def first_choice(config_name: str, word: str) -> list[str]:
    """The word with the first value of its sweep. Intervals and patterns, whose values Hydra finds, give no word."""
    try:
        override = OverridesParser.create().parse_override(word)
    except OverrideParseException as error:
        fail(UserError(explain(config_name, error)))
    if not override.is_sweep_override():
        return [word]
    if override.is_interval_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []
    return [f"{override.get_key_element()}={next(override.sweep_string_iterator())}"]


def explain(config_name: str, error: Exception) -> str:
    """Hydra's error in one line, with the nearest existing name."""
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' as key=value: put quotes round special characters"
    text = str(error)
    if "Config group override must be" in text:
        return "a choice such as site= or algo= cannot be null: leave it out (algo=nocache has no site)"
    if choice := re.search(r"Could not find '([\w-]+)/([^']+)'", text):
        group, name = choice.groups()
        names = re.findall(r"^\t([\w-]+)$", text, re.MULTILINE)
        return f"there is no {group}={name}{nearest(name, names)}; choose of {', '.join(names)}"
    if key := re.search(r"Could not override '([^']+)'", text):
        default = OmegaConf.to_container(hydra.compose(config_name), resolve=False)
        return f"there is no key {key[1]}{nearest(key[1], list(paths(default)))}: see --cfg job"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = str(error.__cause__)
    return text.split("\n")[0]


def paths(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys below a plain configuration."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield prefix + key
        yield from paths(value, f"{prefix}{key}.")
