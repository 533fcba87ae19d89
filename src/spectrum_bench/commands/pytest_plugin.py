"""A pytest plugin: each promise of a caching hook is one test of your own suite.

    pytest --cache-under-test my_module:enable,disable --pipeline-under-test random:flux

Both options may be given several times; the checks are those of `spectrum-bench conformance`.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from spectrum_bench.commands import conformance
from spectrum_bench.errors import UserError


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("caches under test")
    group.addoption("--cache-under-test", action="append", default=[], help="as cache= of spectrum-bench conformance")
    group.addoption("--pipeline-under-test", action="append", default=[], help="as pipeline=; by default random:flux")
    group.addoption("--under-test", action="append", default=[], metavar="KEY=VALUE", help="its other keys: steps=12")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks of each cache on each pipeline to the tests that pytest has found itself.

    Raises:
        UsageError: an option names nothing.
    """
    caches, pipelines = config.getoption("cache_under_test"), config.getoption("pipeline_under_test")
    others = dict(word.partition("=")[::2] for word in config.getoption("under_test"))
    for cache, pipeline in product(caches, pipelines or ["random:flux"]):
        if strangers := others.keys() - conformance.OPTIONS.keys():
            raise pytest.UsageError(f"--under-test: there is no key {min(strangers)}: see spectrum-bench conformance")
        try:
            checks = conformance.prepared({**others, "cache": cache, "pipeline": pipeline})
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        for name, make in checks.items():
            items.append(Promise.from_parent(session, name=f"{cache} on {pipeline}: {name}", make=make))


class Promise(pytest.Item):
    """One check as a test."""

    def __init__(self, *, make: Callable[[], Any], **named: Any):
        super().__init__(**named)
        self.make = make

    def runtest(self) -> None:
        finding = self.make()
        if finding.verdict == "-":
            pytest.skip(finding.words)
        if finding.verdict != "ok":
            raise Broken(finding.words)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        return str(excinfo.value) if excinfo.errisinstance(Broken) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        return "caches under test", None, self.name


class Broken(Exception):
    """A promise was not kept."""
