"""What entry scripts share: Hydra's command line, and errors of one line."""

import difflib
import re
import sys
from collections.abc import Callable

import hydra
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .jobs import UserError
from .models import ROOT

CONFIGS = str(ROOT / "configs")


def hydra_entry(config_name: str, main: Callable):
    """The main function of an entry script: compose `configs/<config_name>.yaml` and call `main` with it."""

    @hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config_name)
    def job(cfg):
        try:
            main(cfg)
        except (UserError, OmegaConfBaseException) as error:
            fail(error)

    def entry():
        check_words(config_name, sys.argv[1:])
        job()

    return entry


def fail(error: Exception) -> None:
    """Print the error as one line and exit with 1."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(1)


def check_words(config_name: str, words: list[str]) -> None:
    """Compose once before Hydra does, to say in one line what is wrong with the words of the command line."""
    overrides = [word for word in words if not word.startswith("-") and "=" in word]
    if any(word.startswith("-") and word not in ("-m", "--multirun") for word in words):
        return  # --help, --cfg and the like are Hydra's own
    strangers = [word for word in words if not word.startswith("-") and "=" not in word]
    if strangers:
        fail(UserError(f"'{strangers[0]}' is not key=value: see --help"))
    if {"-m", "--multirun"} & set(words):  # of a sweep, each first choice
        overrides = [re.sub(r"^([^=]+=)([^,\[\]()]+),.*$", r"\1\2", word) for word in overrides]
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        try:
            hydra.compose(config_name, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            fail(UserError(explain(config_name, error)))


def explain(config_name: str, error: Exception) -> str:
    """Hydra's complaint in one line, with the nearest name that exists."""
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' as key=value: put quotes round special characters"
    text = str(error)
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


def nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def paths(node, prefix: str = ""):
    """Dotted names of all keys below a plain configuration."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield prefix + key
        yield from paths(value, f"{prefix}{key}.")
