"""Commands in processes of their own that begin with torch and diffusers imported: that spares each of them four
seconds of a processor. Where the imports are what is tested, a test starts Python itself."""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

from spectrum_bench.paths import ROOT

PRELOADED = [
    "diffusers.pipelines.flux.pipeline_flux",
    "spectrum_bench.commands.run",
    "spectrum_bench.commands.evaluate",
    "spectrum_bench.commands.report",
    "spectrum_bench.sampling.pool",
]


@cache
def server() -> multiprocessing.context.ForkServerContext:
    """Where forks come from: started once in each process of pytest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT / "src")):
        multiprocessing.forkserver.ensure_running()
    return context


class Command:
    """A script at work with its words, in `cwd` and with more variables: the parts of subprocess.Popen that tests
    use."""

    def __init__(self, script: Path, *words: str, cwd: Path | str = ".", **environment: str):
        self.args = [str(script), *map(str, words)]
        self._written = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115 - gone with this object
        names = [file.name for file in self._written]
        arguments = (self.args, *names, os.path.abspath(cwd), os.environ | environment)
        self._process = server().Process(target=_work, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    returncode = property(poll)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        out, err = (Path(file.name).read_text(encoding="utf-8") for file in self._written)
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()


def _work(words: list[str], out: str, err: str, cwd: str, environment: dict[str, str]) -> None:
    for number, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path[:0] = [os.path.dirname(words[0]), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # Ray ends what it started; processes of multiprocessing leave that out
