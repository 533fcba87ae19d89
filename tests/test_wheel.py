"""The wheel works outside the checkout, with what it brings alone."""

import os
import subprocess
import sys
import zipfile

import pytest

from spectrum_bench.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, ROOT]
    subprocess.run(command, check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs python with the installed package in an empty folder: (words) -> the finished process."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [sys.executable, *words]
        settings = {"cwd": empty, "env": clean | {"PYTHONPATH": str(site)} | environment}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **settings)

    run.folder = empty
    return run


def test_it_holds_what_it_needs_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0].split("-")[0] for name in names}
    assert tops == {"spectrum_bench"}
    for name in (
        "configs/base.yaml",
        "prompts/shapes.txt",
        "results/paper/README.md",
        "assets/tiny/flux/model_index.json",
    ):
        assert f"spectrum_bench/data/{name}" in names
    assert "spectrum_bench/reporting/page.html.j2" in names and any(name.endswith("LICENSE") for name in names)
    assert not any("assets/tiny/sd3" in name for name in names)


def test_a_run_its_scores_and_its_report(installed):
    short = ("total_prompt_num=2", "num_inference_steps=8", "warmup_samples=0")
    for algo in ("nocache", "spectrum"):
        done = installed("-m", "spectrum_bench", "run", f"algo={algo}", f"exp_name={algo}", *short)
        assert done.returncode == 0, done.stderr
    folders = ("output_samples_image/spectrum", "reference=output_samples_image/nocache")
    assert installed("-m", "spectrum_bench", "evaluate", *folders).returncode == 0
    done = installed("-m", "spectrum_bench", "report", *folders, "out=report")
    assert done.returncode == 0 and (installed.folder / "report/index.html").is_file(), done.stderr


def test_other_miniatures_are_named(installed):
    done = installed("-m", "spectrum_bench", "run", "model=tiny-sd3")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "SPECTRUM_BENCH_ASSETS" in done.stderr
    words = ("run", "model=tiny-sd3", "total_prompt_num=1", "num_inference_steps=6", "warmup_samples=0")
    done = installed("-m", "spectrum_bench", *words, SPECTRUM_BENCH_ASSETS=str(ROOT / "assets"))
    assert done.returncode == 0, done.stderr


def test_the_library_needs_no_torch_to_be_imported(installed):
    code = "import sys, spectrum_bench; print(spectrum_bench.__version__, 'torch' in sys.modules)"
    assert installed("-c", code).stdout.split()[1] == "False"
