"""The common part of entry scripts: Hydra's command line, and errors as one line."""

import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from spectrum_bench.commands import list_
from spectrum_bench.commands.compose import settings_of  # also registers the resolver ${calibrated:...}
from spectrum_bench.commands.ending import fail, one_line, without_debug
from spectrum_bench.commands.help import help_text
from spectrum_bench.commands.list_ import GROUPS
from spectrum_bench.commands.targets import check_hydra, check_plugins, check_targets
from spectrum_bench.commands.words import nearest
from spectrum_bench.errors import INTERRUPTED, UserError
from spectrum_bench.paths import CONFIGS, environment_with_package
from spectrum_bench.sampling.settings import RunSettings


class Ended(Exception):
    """A run of a sweep has ended with this exit code. Hydra goes on with the other runs and then raises the first
    one."""


def hydra_entry(config_name: str, main: Callable[[DictConfig], Any]) -> Callable[[], None]:
    """The main function of an entry script: compose `configs/<config_name>.yaml` and call `main` with it."""

    @hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config_name)
    def job(cfg: DictConfig) -> Any:
        try:
            return call(main, cfg)  # a sweeper that searches wants its value
        except SystemExit as end:
            if HydraConfig.get().mode == RunMode.MULTIRUN and end.code != INTERRUPTED:
                raise Ended(end.code) from None
            raise

    def entry() -> None:
        sys.argv[1:] = readable(without_debug(sys.argv[1:]))
        check_words(config_name, sys.argv[1:])
        sys.argv[1:] = name_apart(sys.argv[1:])
        os.environ["PYTHONPATH"] = environment_with_package()["PYTHONPATH"]  # a launcher's jobs find this package by it
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or Hydra shows a sweep's end like a bug
        try:
            job()
        except Ended as end:
            raise SystemExit(end.args[0]) from None
        except (HydraException, OmegaConfBaseException) as error:
            fail(UserError(explain(config_name, error)))

    return entry


def readable(words: list[str]) -> list[str]:
    """The words with -m in front, wherever it stands, and with the home folder in `key=~/folder`: neither Hydra nor the
    shell puts it there."""
    flags = [word for word in words if word in ("-m", "--multirun")]
    others = [word for word in words if word not in flags]
    return flags + [re.sub(r"(?<==)~(?=/|$)", lambda _: os.path.expanduser("~"), word, count=1) for word in others]


def call(main: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """What `main` makes of a configuration; bad values become one line on stderr and exit code 1."""
    with one_line():
        try:
            return main(cfg)
        except (UserError, OmegaConfBaseException) as error:
            fail(of_resolver(error) or error)


def check_words(config_name: str, words: list[str]) -> DictConfig | None:
    """Compose before Hydra does, to say in one line what is wrong with the words of the command line, and to
    refuse code before Hydra calls it.

    Returns:
        The configuration, that of the first run of a sweep; None for words that run nothing.
    """
    show_choices(words)
    options = parsed(words)
    if options.experimental_rerun or options.config_path:  # the first unpickles a file
        fail(UserError("--experimental-rerun and --config-path are not for this command: give key=value, --config-dir"))
    if sum(map(bool, (options.run, options.multirun, options.cfg, options.info, options.shell_completion))) > 1:
        fail(UserError("--run, --multirun, --cfg, --info and --shell_completion exclude each other: give one of them"))
    if any((options.hydra_help, options.cfg, options.info, options.shell_completion)):
        return None  # they are Hydra's own, and run nothing
    overrides = list(options.overrides)
    strangers = [word for word in overrides if "=" not in word and not word.startswith("~")]
    if strangers:
        fail(UserError(f"'{strangers[0][:80]}' is not key=value: see --help"))
    for key, _, value in (word.partition("=") for word in overrides):
        if key in GROUPS.values() and ".." in value.split("/"):
            fail(UserError(f"there is no {key}={value[:80]}: see {key}=?"))
    if options.config_dir:
        if any("hydra.searchpath" in word for word in overrides):
            fail(UserError("--config-dir and hydra.searchpath are one and the same: give one of them"))
        overrides.append(f"hydra.searchpath=['file://{os.path.abspath(options.config_dir)}']")
    name = options.config_name or config_name
    try:
        if options.help:
            print(help_text(composed(name, overrides)))
            raise SystemExit(0)
        return [composed(name, each) for each in (first_runs(name, overrides) if options.multirun else [overrides])][0]
    except UserError as error:
        fail(error)


def first_runs(config_name: str, overrides: list[str]) -> list[list[str]]:
    """The words of the first run of a sweep, and for each other choice of a group the words of its first run."""
    swept = [found for each in overrides if (found := choices(config_name, each))]
    first = [each[0] for each in swept]
    others = [[*first[:at], word, *first[at + 1 :]] for at, each in enumerate(swept) for word in each[1:]]
    return [first, *others]


def composed(config_name: str, overrides: list[str]) -> DictConfig:
    """The configuration of these words, Hydra's own nodes included; it calls no code that is not ours.

    Raises:
        UserError: a word is wrong, or names code that is not ours.
    """
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        try:
            cfg = hydra.compose(config_name, overrides, return_hydra_config=True)
        except Exception as error:  # Hydra answers to bad words with many kinds of it
            raise UserError(explain(config_name, error)) from error
        try:
            check_hydra(cfg)
            plugins = check_plugins(OmegaConf.to_container(cfg.plugins), overrides) if "plugins" in cfg else ()
            ours = {key: cfg._get_node(key) for key in cfg if key != "hydra"}
            check_targets(OmegaConf.to_container(OmegaConf.create(ours), resolve=False), plugins)
        except (OmegaConfBaseException, ValueError) as error:
            raise UserError(str(error)) from error
    return cfg


def settings_from(config_name: str, words: list[str]) -> RunSettings:
    """The settings that an entry script makes of these words.

    Raises:
        UserError: a word is wrong, or names code that is not ours.
    """
    cfg = composed(config_name, words)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return settings_of(cfg)


def parsed(words: list[str]) -> Namespace:
    """The words as Hydra will parse them: abbreviated options too."""
    parser = get_args_parser()
    try:
        parser.error = refuse  # type: ignore[method-assign]  # which would print its usage
        return parser.parse_args(words)
    except UserError as error:
        fail(error)


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message}: options come before or after all key=value words (see --help)")


def name_apart(words: list[str]) -> list[str]:
    """The words of a sweep over more than model and algo, with an exp_name that tells its runs apart if it has none."""
    options = parsed(words)
    if not options.multirun or any(word.startswith("exp_name=") for word in options.overrides):
        return words
    overrides = OverridesParser.create().parse_overrides(options.overrides)
    swept = [each.key_or_group for each in overrides if each.is_sweep_override()]
    keys = [key for key in swept if key not in ("model", "algo") and not key.startswith("hydra")]
    if not keys:
        return words
    place = words.index(options.overrides[0])  # beside the others: options stand before or after all of them
    return [*words[:place], f"exp_name=${{swept:{','.join(keys)}}}", *words[place:]]


def show_choices(words: list[str]) -> None:
    """If a word is like `algo=?`, print the choices of the group and end the command."""
    for word in words:
        group, _, value = word.partition("=")
        if value == "?" and group in GROUPS.values():
            list_.print_choices(group)
            raise SystemExit(0)


def choices(config_name: str, word: str) -> list[str]:
    """The words a sweep makes of one: all choices of a group, of which a missing one would end the whole sweep, and the
    first of other values. Intervals and patterns, whose values Hydra finds, give none."""
    try:
        override = OverridesParser.create().parse_override(word)
    except OverrideParseException as error:
        fail(UserError(explain(config_name, error)))
    if not override.is_sweep_override():
        return [word]
    if override.is_interval_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []
    values = override.sweep_string_iterator()
    chosen = values if override.key_or_group in GROUPS.values() else [next(values)]
    return [f"{override.get_key_element()}={value}" for value in chosen]


def of_resolver(error: BaseException | None) -> UserError | None:
    """The error of a resolver such as ${calibrated:...}, which OmegaConf and Hydra wrap in their own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def explain(config_name: str, error: Exception) -> str:
    """Hydra's error in one line, with the nearest existing name."""
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' as key=value: put quotes round special characters"
    if reason := of_resolver(error):
        return str(reason)
    text = str(error)
    if "Config group override must be" in text:
        return "a choice such as site= or algo= cannot be null: leave it out (algo=nocache has no site)"
    if part := re.search(r"Could not (?:find|load) '(\w+)/(schedule|site)/([^']+)'", text):
        return f"{part[1]}={part[2]}/{part[3]}: {overriding(part[2], part[3])}"
    if choice := re.search(r"Could not find '([\w-]+)/([^']+)'", text):
        group, name = choice.groups()
        names = re.findall(r"^\t([\w-]+)$", text, re.MULTILINE)
        if "/" in name:  # Hydra names the folder's neighbours alone
            names = [each.name for each in list_.choices(group) if "/" in each.name]
        return f"there is no {group}={name}{nearest(name, names)}; choose of {', '.join(names)}"
    if key := re.search(r"Could not override '(\w+)@[\w.]*'", text):
        return f"a YAML's defaults name {key[1]} where there is none: {overriding(key[1], '<name>')}"
    if key := re.search(r"Could not override '([^']+)'", text):
        default = OmegaConf.to_container(hydra.compose(config_name), resolve=False)
        return f"there is no key {key[1]}{nearest(key[1], list(paths(default)))}: see --cfg job"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = str(error.__cause__)
    return text.split("\n")[0]


def overriding(group: str, name: str) -> str:
    """What to write into the defaults of a YAML so that it chooses a schedule or a site."""
    return f"write '- override /{group}@_global_.{group}: {name}' into its defaults"


def paths(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys below a plain configuration."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield prefix + key
        yield from paths(value, f"{prefix}{key}.")
