"""scripts/gpu_truth.py on the CPU: every section does its work at tiny widths; what fails or does not fit says so."""

import importlib
import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from spectrum_bench import distances, gates
from spectrum_bench.paths import ROOT
from spectrum_bench.signals import ENTERING, MODULATED, PROBE

SCRIPT = ROOT / "scripts/gpu_truth.py"


@pytest.fixture(scope="module")
def script():
    """The script, imported late: it chooses how triton runs."""
    return importlib.import_module("gpu_truth")


def read(folder):
    return [json.loads(line) for line in (folder / "gpu_truth.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_section_writes_its_lines(script, tmp_path):
    words = [sys.executable, SCRIPT, "simulate=true", f"out={tmp_path}", "label=test"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = read(tmp_path)
    assert [line for line in lines if "error" in line] == []
    assert lines[0]["section"] == "environment" and lines[0]["label"] == "test" and lines[0]["simulated"]
    assert {line["section"] for line in lines} == {"environment", *script.SECTIONS, "end"}
    assert {line.get("skipped", "").split(":")[0] for line in lines} <= {"", "torchao", "cache-dit"}
    assert [line["identical"] for line in lines if line.get("method") == "identity"] == [True]
    kernels = [line for line in lines if line.get("way") in ("package", "triton", "compile")]
    assert len(kernels) == 3 * 2 * len(sys.modules["gpu.forecasts"].ROWS) + 2
    channels = [line for line in lines if line.get("way") == "channels"]
    assert len(channels) == len(sys.modules["gpu.forecasts"].ROWS)
    for line in kernels + channels:
        assert line["unwritten"] == 0 and line["relative_error"] < 1.05 * line["rounding_alone"]
    passes = {line["method"]: line["passes"] for line in lines if line["section"] == "flux" and "passes" in line}
    assert passes["spectrum-10"] == passes["reuse stack"] == 10 and passes["spectrum-14"] == 14
    assert abs(passes["teacache"] - 12) <= 2
    assert len(done.stdout) < 12_000  # the end of the screen is often all that is seen of it
    report = [
        sys.executable,
        ROOT / "scripts/gpu_report.py",
        tmp_path / "gpu_truth.jsonl",
        f"out={tmp_path / 'report'}",
    ]
    subprocess.run(report, check=True, capture_output=True, timeout=120)
    text = (tmp_path / "report/README.md").read_text()
    assert "Simulated on a CPU" in text and "to the bit the plain pipeline's latents: True" in text
    rows = (tmp_path / "report/table.csv").read_text()
    assert "flux,flux,spectrum-10,3,50,10" in rows and ",4.79," in rows  # three runs, the paper's speedup beside them


def test_an_error_or_a_lack_of_time_is_a_line_and_no_end(script, tmp_path):
    run = script.Run({"simulate": "true", "budget": "60", "out": str(tmp_path), "quick": "false"})
    assert run.attempt("flux", 1, lambda: 1 / 0, "division") is None
    assert run.attempt("flux", 61, lambda: pytest.fail("it ran")) is None
    assert run.attempt("flux", 1, lambda: 3) == 3
    failed, skipped = read(tmp_path)
    assert failed["error"] == "ZeroDivisionError: division by zero" and failed["method"] == "division"
    assert "1 / 0" in "".join(failed["traceback"])
    assert skipped["skipped"] == "budget" and skipped["wants_s"] == 61


def test_thresholds_are_those_of_the_gates(script):
    methods = sys.modules["gpu.methods"]
    rows = torch.rand(50, 64, generator=torch.Generator().manual_seed(0)) + 2
    changes = [distances.distance(new, old) for old, new in zip(rows, rows[1:], strict=False)]
    limit = methods.threshold(partial(methods.accumulated_passes, [np.nan, *changes]), 12)
    gate = gates.accumulated(threshold=limit, polynomial=[1.0, 0.0])
    state = gate.start(50)
    assert sum(gate.decide(step, {MODULATED: row}, state) for step, row in enumerate(rows)) <= 12
    limit = methods.threshold(partial(methods.first_block_passes, list(rows)), 12)
    gate = gates.first_block(threshold=limit)
    state, seen = gate.start(50), [{ENTERING: torch.zeros(64), PROBE: row} for row in rows]
    assert sum(gate.decide(step, s, state) for step, s in enumerate(seen)) <= 12
