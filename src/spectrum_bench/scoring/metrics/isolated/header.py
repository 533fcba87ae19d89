"""The header of a scoring script, a comment as in PEP 723: the packages and the weights that the script needs.

    # /// script
    # dependencies = ["torch==2.14.1"]
    #
    # [[tool.spectrum-bench.weights]]
    # url = "https://..."
    # to = "{torch}/hub/checkpoints"
    # size = 21108000
    # sha256 = "fcfa..."
    # ///

Tools that run single scripts (uv, pipx, hatch) read the same header.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from spectrum_bench.sampling.catalogue import Entry, entry

SCRIPTS = Path(__file__).parent
BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # as PEP 723 has it


@dataclass(frozen=True)
class Header:
    """A script's pinned packages, and the files that it reads."""

    dependencies: tuple[str, ...] = ()
    weights: tuple[Entry, ...] = ()

    def version(self, package: str) -> str | None:
        """The version to which a package is pinned."""
        pins = dict(pin.split("==") for pin in self.dependencies if "==" in pin)
        return pins.get(package)


def script(environment: str) -> Path:
    """The script that runs in an environment."""
    return SCRIPTS / f"score_{environment}.py"


def read(environment: str) -> Header:
    """The header of an environment's script. A script without one gives an empty Header."""
    block = BLOCK.search(script(environment).read_text(encoding="utf-8"))
    if block is None:
        return Header()
    fields = tomllib.loads("".join(line[2:] or "\n" for line in block["content"].splitlines(keepends=True)))
    weights = fields.get("tool", {}).get("spectrum-bench", {}).get("weights", [])
    return Header(tuple(fields.get("dependencies", ())), tuple(map(entry, weights)))
