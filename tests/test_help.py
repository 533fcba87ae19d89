"""--help says what every key is for."""

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from spectrum_bench.commands import entry, help
from spectrum_bench.commands.list_ import GROUPS
from spectrum_bench.paths import CONFIGS

ROOTS = [path.stem for path in Path(CONFIGS).glob("*.yaml") if "hydra:" in path.read_text()]
CHOICES = [f"{group}/{path.stem}" for group in GROUPS.values() for path in Path(CONFIGS, group).glob("*.yaml")]
PUBLISHED = "schedule/published/meancache_qwen_10"  # all of that folder have its keys
LIBRARYS = re.compile(
    r"\.(arguments|filled|constants|scheduler)\."
)  # keys below have a library's names, and its documentation
REFERENCE = re.compile(r"\$\{[\w.]+\}|\$\{oc\.select:[\w.]+,\w+\}")  # to a key that is explained itself


def keys(node, above=""):
    for key, value in node.items():
        yield above + key, value
        if isinstance(value, dict):
            yield from keys(value, f"{above}{key}.")


@cache
def of_yaml(name):
    """The keys of a YAML that its help shows, and what explains them."""
    path = Path(CONFIGS, f"{name}.yaml")
    group = name.partition("/")[0] if "/" in name else ""
    above = "" if "@package _global_" in path.read_text() else group
    node = help.shown(yaml.safe_load(path.read_text()) or {})
    node = {key: value for key, value in node.items() if key not in ("defaults", "hydra")}
    return dict(keys({above: node} if above else node)), help.comments(path, group)


@cache
def common():
    return help.flat(yaml.safe_load(help.KEYS.read_text()))


@pytest.mark.parametrize("name", [*ROOTS, *CHOICES, PUBLISHED])
def test_every_key_has_a_line(name):
    shown, comments = of_yaml(name)
    base = of_yaml("base")[1]
    unexplained = {
        key
        for key, value in shown.items()
        if not (key in base or key in comments or key in common() or key in GROUPS.values())
        and not LIBRARYS.search(key)
        and not (isinstance(value, str) and REFERENCE.fullmatch(value))
    }
    assert not unexplained, "write '# what it is for' behind the key, or a line into configs/keys.yaml"


def test_every_line_is_short_and_of_a_key_that_some_yaml_has():
    known = {key for name in [*CHOICES, PUBLISHED] for key in of_yaml(name)[0]} | {"model.revision"}
    assert set(common()) <= known
    assert max(map(len, common().values())) <= 110


def test_help_joins_what_keys_yaml_says_and_what_stands_beside_the_key(capsys):
    with pytest.raises(SystemExit):
        entry.check_words("image_to_video", ["schedule=easycache", "site=tokens", "--help"])
    told = re.sub(r"\s+(# )?", " ", capsys.readouterr().out)
    assert "first: 5 so many first steps are computed in any case; 10 for Wan" in told
    assert "prompt_file: prompts/moving.txt one prompt a line" in told  # configs/video.yaml, which image_to_video names
    assert "seed: 42 of every prompt, as upstream" in told and "needs: [image] what each line" in told
    assert "_target_:" not in told and "revision:" not in told


@pytest.mark.parametrize("command", ["evaluate", "report", "leaderboard", "score", "conformance", "verify"])
def test_the_usage_of_a_plain_command_lists_its_keys(command):
    module = import_module(f"spectrum_bench.commands.{command}")
    listed = re.findall(r"^  (\w+)=", module.__doc__, re.MULTILINE)
    assert set(module.OPTIONS) <= set(listed) and len(listed) == len(set(listed))
