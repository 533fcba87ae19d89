"""Check what a caching hook promises, on a pipeline: diffusers' hooks, cache-dit's, or your own.

usage: python src/conformance.py pipeline=<pipeline> cache=<cache> [key=value ...]

  pipeline=random:flux  a small random pipeline, which needs no weights (random:? lists them); a folder in diffusers'
                        format; or a repository that download.py has fetched
  cache=<cache>         'diffusers:FirstBlockCacheConfig(threshold=0.5)';
                        'cachedit:DBCacheConfig(residual_diff_threshold=0.3)+TaylorSeerCalibratorConfig()', with its
                        calibrator or without; or my_module:enable,disable, two functions that take the pipeline.
                        Names and literals are data and never evaluated; a module of yours is code, and runs
                        Give a threshold at which it skips: random weights need a larger one than trained ones
  never=<cache>         for functions of yours: two that switch the same cache on, told never to skip, and off
  guided=false          true: every call has the pipeline's own guidance, for a cache that needs both branches
  compile=false         true: one check more, with blocks under torch.compile, which must give the same bits
  offload=false         true: one check more, with weights under diffusers' model and group offloading
  steps=8               steps of a call
  size=64               height and width in pixels
  call={}               more arguments of the pipeline's call, as a literal: call='{"num_frames": 5}'
  dtype=float32         of a folder's or a repository's weights
  device=cpu            where it runs
  json=<file>           write the findings there too

One line a check: ok, FAILED, or - where it does not apply. The exit code is 3 if one has failed or the cache does not
take the pipeline, and 0 if not.
"""

import ast
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum_bench.commands import words
from spectrum_bench.commands.ending import say
from spectrum_bench.conformance.words import read_cache
from spectrum_bench.errors import SOME_FAILED, UserError
from spectrum_bench.sampling.models import find_weights

if TYPE_CHECKING:
    from spectrum_bench.conformance.bench import Bench
    from spectrum_bench.conformance.checks import Finding

OPTIONS = {"pipeline": "", "cache": "", "never": "", "steps": "8", "size": "64", "call": "{}", "dtype": "float32"}
OPTIONS |= {"device": "cpu", "guided": "false", "compile": "false", "offload": "false", "json": ""}
RANDOM = [  # those of sampling/small.py, which needs torch
    "flux",
    "wan",
    "hunyuan",
    "qwen-image",
    "flux2-dev",
    "flux2-klein",
    "z-image",
    "z-image-turbo",
    "flux-schnell",
    "flux-kontext",
    "sd3-5-medium",
    "qwen-image-edit",
    "qwen-image-2-1",
    "cogvideox",
    "ltx-2",
    "hunyuan1-5",
    "hunyuan1-5-i2v",
    "wan2-1-i2v",
    "wan2-2-t2v",
    "wan2-2-i2v",
    "wan2-2-ti2v",
]


def main(argv: list[str]) -> None:
    _, options = words.parse(argv, __doc__, {**OPTIONS, "pipeline": None, "cache": None}, folderless=True)
    bench = open_bench(options)
    from spectrum_bench.conformance.checks import FAILED, check_all

    findings = []
    for finding in check_all(bench):
        say(f"{finding.verdict:6}  {finding.check:20}  {finding.words}")
        findings.append(finding)
    if options["json"]:
        write(Path(options["json"]), options, findings)
    if bench.broken or any(finding.verdict == FAILED for finding in findings):
        raise SystemExit(SOME_FAILED)


def open_bench(options: dict[str, str]) -> "Bench":
    """The cache and the pipeline that the options name. Nothing needs torch until all of them have been read.

    Raises:
        UserError: an option names nothing.
    """
    named = read_cache(options["cache"])
    never = read_cache(options["never"]) if options["never"] else None
    steps, size = (number(key, options[key], bounds) for key, bounds in (("steps", (4, 1000)), ("size", (16, 4096))))
    call = arguments(options["call"])
    check_pipeline(options["pipeline"])
    if options["dtype"] not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype={options['dtype'][:40]}: write float32, bfloat16 or float16")
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?|mps", options["device"]):
        raise UserError(f"device={options['device'][:40]}: write cpu or cuda")
    guided, compiling, offloading = (yes_or_no(key, options[key]) for key in ("guided", "compile", "offload"))
    if options["json"]:
        check_place(Path(options["json"]))
    from spectrum_bench.conformance.bench import Bench
    from spectrum_bench.conformance.caches import Cache
    from spectrum_bench.conformance.pipelines import open_case

    cache = Cache(named, never)
    case = open_case(options["pipeline"], call, steps, size, options["dtype"], options["device"])
    return Bench(case, cache, guided, compiling, offloading)


def prepared(options: dict[str, str]) -> "dict[str, Callable[[], Finding]]":
    """The checks to make, by name, of a cache and a pipeline; options as on the command line."""
    bench = open_bench(OPTIONS | options)
    from spectrum_bench.conformance.checks import CHECKS, check

    return {name: partial(check, bench, name) for name in CHECKS}


def yes_or_no(key: str, text: str) -> bool:
    """The value of a switch.

    Raises:
        UserError: it is neither true nor false.
    """
    if text not in ("true", "false"):
        raise UserError(f"{key}={text[:40]}: write {key}=true or {key}=false")
    return text == "true"


def number(key: str, text: str, bounds: tuple[int, int]) -> int:
    """A whole number within bounds.

    Raises:
        UserError: it is none.
    """
    low, high = bounds
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and low <= int(text) <= high):
        raise UserError(f"{key}={text[:40]} is no whole number from {low} to {high}: write {key}={OPTIONS[key]}")
    return int(text)


def arguments(text: str) -> dict[str, Any]:
    """The literal dictionary of `call=`.

    Raises:
        UserError: it is none.
    """
    try:
        given = ast.literal_eval(text) if len(text) < 4000 else None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        given = None
    if not isinstance(given, dict) or not all(isinstance(key, str) and key.isidentifier() for key in given):
        raise UserError(f"call={text[:80]} is no dictionary of literals: write call='{{\"num_frames\": 5}}'")
    return given


def check_pipeline(name: str) -> None:
    """Refuse a pipeline that is not there, before torch is imported.

    Raises:
        UserError: it is not there.
    """
    kind, colon, small = name.partition(":")
    if not (colon and kind == "random"):
        words.check_length(name)
        find_weights(name)
    elif small not in RANDOM:
        raise UserError(
            f"there is no pipeline=random:{small[:40]}{words.nearest(small, [*RANDOM])}: {', '.join(RANDOM)}"
        )


def check_place(path: Path) -> None:
    """Refuse a file that cannot be written.

    Raises:
        UserError: its folder is not there, or a folder is in its place.
    """
    words.check_length(str(path))
    if not path.parent.is_dir() or path.exists() and not path.is_file():
        raise UserError(f"json={str(path)[:80]} cannot be written: name a file in a folder that exists")


def write(path: Path, options: dict[str, str], findings: "list[Finding]") -> None:
    """Write the findings with the versions that they are about."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("diffusers", "cache-dit", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    told = {key: value for key, value in options.items() if key not in ("never", "json")}
    lines = [{"check": each.check, "verdict": each.verdict, "words": each.words} for each in findings]
    path.write_text(json.dumps({**told, "versions": versions, "findings": lines}, indent=1) + "\n", encoding="utf-8")
