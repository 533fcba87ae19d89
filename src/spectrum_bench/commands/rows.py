"""rows: many runs one after the other in one process, which loads their model once.

usage: python src/rows.py <file> [key=value ...]

  <file>      a row a line: the run's name, then its own key=value words; - reads them from standard input
  key=value   words of every row, as text_to_image.py takes them

    # rows.txt
    nocache    algo=nocache
    spectrum   algo=spectrum algo.w=0.5
    reuse      algo=reuse

  python src/rows.py rows.txt model=tiny-flux total_prompt_num=16 output_base_path=output_samples_image/three

All rows are checked before the first one begins. A row that fails does not stop the others. Finished samples are not
made again.
"""

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from spectrum_bench.commands.compose import build, settings_of
from spectrum_bench.commands.ending import refusal
from spectrum_bench.commands.entry import composed, readable
from spectrum_bench.commands.main import config_of
from spectrum_bench.commands.run import sample
from spectrum_bench.errors import INTERRUPTED, SOME_FAILED, UserError
from spectrum_bench.paths import environment_with_package, locate
from spectrum_bench.sampling import reading
from spectrum_bench.sampling.limits import check_folder_name
from spectrum_bench.sampling.prompts import read_prompt_file

if TYPE_CHECKING:
    from spectrum_bench.sampling.settings import RunSettings


@dataclass(frozen=True)
class Line:
    """A run's name and words."""

    name: str
    words: list[str]


def main(argv: list[str]) -> None:
    """Make all rows of a file. Exits with SOME_FAILED if samples failed.

    Raises:
        UserError: a row is wrong, and none is begun; or a row failed, and the others are finished.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print((__doc__ or "").strip())
        return
    path, *common = readable(argv)
    strangers = [word for word in common if "=" not in word or word.startswith("exp_name=")]
    if strangers:
        raise UserError(f"{strangers[0][:80]}: only key=value words follow the file, and rows have their own names")
    try:
        lines = read(sys.stdin.read() if path == "-" else reading.read_text(Path(path), reading.RECORD))
    except FileNotFoundError:
        raise UserError(f"there is no {path}: name a file with a row a line (see --help)") from None
    make(lines, common)


def make(lines: Sequence[Line], common: Sequence[str]) -> None:
    """Make rows, with these words for all. Exits with SOME_FAILED if samples failed.

    Raises:
        UserError: a row is wrong, and none is begun; or a row failed, and the others are finished.
    """
    os.environ["PYTHONPATH"] = environment_with_package()["PYTHONPATH"]  # workers find this package by it
    configs = [checked(line, [*common, *line.words]) for line in lines]
    opener = Opener()
    codes = []
    for i, (line, cfg) in enumerate(zip(lines, configs, strict=True), 1):
        print(f"\n[{i}/{len(lines)}] {line.name}", flush=True)
        HydraConfig.instance().set_config(cfg)
        try:
            codes.append(sample(without_hydra(cfg), opener))
        except (UserError, OSError) as error:
            print(f"error: {refusal(error) if isinstance(error, OSError) else error}", file=sys.stderr)
            codes.append(1)
        if codes[-1] == INTERRUPTED:
            sys.exit(INTERRUPTED)
    failed = [line.name for line, code in zip(lines, codes, strict=True) if code == 1]
    if failed:
        raise UserError(f"{', '.join(failed)} failed; the others are finished, and the same command goes on")
    if SOME_FAILED in codes:
        sys.exit(SOME_FAILED)


def read(text: str) -> list[Line]:
    """The rows of a file.

    Raises:
        UserError: a line is none, or two rows have one name.
    """
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            name, *words = shlex.split(line, comments=True) or [""]
        except ValueError as error:
            raise UserError(f"line {number}: {error}") from None
        if name:
            check_folder_name(name)
            lines.append(Line(name, words))
    twice = [name for name, count in Counter(line.name for line in lines).items() if count > 1]
    if twice or not lines:
        raise UserError(f"two rows are called {twice[0]}: give each a name of its own" if twice else "there is no row")
    return lines


def checked(line: Line, words: list[str]) -> DictConfig:
    """The composed configuration of a row, with Hydra's own node.

    Raises:
        UserError: a word is wrong, the prompts are missing, or the algorithm's parts do not fit together.
    """
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise UserError(f"{line.name}: '{wrong[0][:80]}' is not key=value")
    others = [word for word in words if re.match(r"\+*(exp_name=|hydra\.(?!searchpath=))", word)]
    if others:
        raise UserError(f"{line.name}: {others[0][:80]}: a row has its name in front, and Hydra's own keys are not its")
    try:
        cfg = composed(config_of("run", words), [*words, f"exp_name='{line.name}'"])
        HydraConfig.instance().set_config(cfg)
        settings = settings_of(without_hydra(cfg))
        read_prompt_file(locate(settings.prompt_file), settings.total_prompt_num, settings.prompt_column)
        build(settings)
    except UserError as error:
        raise UserError(f"{line.name}: {error}") from None
    return cfg


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A run's own keys."""
    own = cfg.copy()
    with open_dict(own):
        del own["hydra"]
    OmegaConf.set_struct(own, True)
    return own


class Opener:
    """Opens the pipeline of a run. While model, runtime and device stay the same it gives the same one again."""

    def __init__(self) -> None:
        self.opened: tuple[Any, tuple[Any, str]] | None = None

    def __call__(self, settings: "RunSettings") -> tuple[Any, str]:
        from spectrum_bench.sampling.worker import open_prepared

        key = (settings.model, settings.runtime, settings.device, settings.threads)
        if self.opened is None or self.opened[0] != key:
            self.opened = None  # two models at a time may be too much
            self.opened = key, open_prepared(settings)
        return self.opened[1]
