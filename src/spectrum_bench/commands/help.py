"""The text of `--help`. Hydra's own takes a second: it lists all groups even for a template that does not show them."""

from collections.abc import Iterator
from pathlib import Path
from string import Template
from textwrap import fill
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from spectrum_bench.commands.list_ import GROUPS
from spectrum_bench.paths import CONFIGS

KEYS = Path(CONFIGS) / "keys.yaml"
HIDDEN = ("_target_", "_partial_", "_convert_", "revision")  # of a node that names code: a YAML's own business
WIDTH, COLUMN = 118, 40  # of a line, and where explanations begin


def help_text(cfg: DictConfig) -> str:
    """The template `hydra.help.template` of a composed configuration, with all of its keys and a line about each.

    Args:
        cfg: with Hydra's own nodes.
    """
    return Template(cfg.hydra.help.template).substitute(CONFIG="\n".join(lines(plain(cfg), explanations(cfg))))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The keys that a user may set, with their interpolations as they stand."""
    node: Any = OmegaConf.create({key: cfg._get_node(key) for key in cfg if key != "hydra"})
    keys: dict[str, Any] = shown(OmegaConf.to_container(node))
    return keys


def shown(node: Any) -> Any:
    """A node without the keys that name its code."""
    if not isinstance(node, dict):
        return node
    return {key: shown(value) for key, value in node.items() if not ("_target_" in node and key in HIDDEN)}


def lines(node: dict[str, Any], about: dict[str, str], above: str = "", indent: str = "") -> Iterator[str]:
    """One line a key, "key: value  # explanation"; long explanations go on below themselves."""
    for key, value in node.items():
        below = value if isinstance(value, dict) and value else {}
        start = f"{indent}{key}:" + ("" if below else f" {written(value)}")
        text = about.get(above + key)
        yield explained(start, text) if text else start
        yield from lines(below, about, f"{above}{key}.", indent + "  ")


def explained(start: str, text: str) -> str:
    """A line with its explanation, which goes on below itself where it is long."""
    first, rest = f"{start:{COLUMN}}  # ", f"{'':{COLUMN}}  # "
    return fill(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def written(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def explanations(cfg: DictConfig) -> dict[str, str]:
    """One line about each key of a composed configuration, by its dotted name: what configs/keys.yaml says, and what
    stands beside the key in the YAML that it comes from."""
    common = flat(yaml.safe_load(KEYS.read_text(encoding="utf-8")))
    about = dict(common)
    for path, group in sources(cfg):
        for key, comment in comments(path, group).items():
            about[key] = "; ".join(filter(None, (common.get(key), comment)))
    return about


def flat(node: dict[str, Any], above: str = "") -> dict[str, str]:
    """The lines of configs/keys.yaml by dotted name; a mapping's own line stands in it under an empty name."""
    found: dict[str, str] = {}
    for key, value in node.items():
        name = f"{above}{key}".removesuffix(".")
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def sources(cfg: DictConfig) -> Iterator[tuple[Path, str]]:
    """The YAMLs that a configuration is composed of, each with the key that its own keys stand below."""
    hydra = cfg.hydra
    folders = [Path(each.path) for each in hydra.runtime.config_sources if each.schema == "file"]
    chosen = {group: hydra.runtime.choices.get(group) for group in GROUPS.values()}
    names = [(name, "") for name in primaries(Path(CONFIGS), hydra.job.config_name)]
    names += [(f"{group}/{name}", group) for group, name in chosen.items() if name]
    for name, group in names:
        path = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
        if path:
            yield path, group


def primaries(folder: Path, name: str) -> list[str]:
    """A configuration of configs/ and those that it is made of, the first one first."""
    path = folder / f"{name}.yaml"
    above = yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", []) if path.is_file() else []
    return [
        each for entry in above if isinstance(entry, str) and entry != "_self_" for each in primaries(folder, entry)
    ] + [name]


def comments(path: Path, group: str) -> dict[str, str]:
    """What stands behind the keys of a YAML, by dotted name."""
    text = path.read_text(encoding="utf-8")
    rows = text.splitlines()
    above = "" if not group or "@package _global_" in text else f"{group}."

    def walk(node: yaml.Node | None, above: str) -> Iterator[tuple[str, str]]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            block = isinstance(value, yaml.CollectionNode) and not value.flow_style
            end = key.end_mark if block else value.end_mark
            behind = rows[end.line][end.column :].lstrip(" :") if end.line < len(rows) else ""
            if behind.startswith("#"):
                yield above + key.value, behind.lstrip("# ")
            yield from walk(value, f"{above}{key.value}.")

    return dict(walk(yaml.compose(text), above))
