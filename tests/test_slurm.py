"""A sweep through a real Slurm, queued again in the middle. Runs where SLURM_CONF names one (scripts/dev_slurm.sh)."""

import os
import subprocess
import sys
import time

import pytest

from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.records import read_records
from spectrum_bench.scoring.experiments import read_experiment

pytestmark = [
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no SLURM_CONF: bash scripts/dev_slurm.sh start"),
    pytest.mark.slow,
]
pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher==1.2.0")
MODEL = ["total_prompt_num=40", "num_inference_steps=30", "warmup_samples=0"]
CLUSTER = ["hydra/launcher=slurm_gpu", "hydra.launcher.mem_gb=null", "hydra.launcher.cpus_per_task=1"]


def start(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "src/text_to_image.py"), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_sweep_that_is_queued_again_goes_on(tmp_path):
    sweep = start("-m", "algo=fora,reuse", *MODEL, f"output_base_path={tmp_path}/sweep", *CLUSTER)
    fora = tmp_path / "sweep/tiny-flux_fora"
    for _ in range(1200):
        if len(list(fora.glob("records/*.json"))) >= 5:
            break
        time.sleep(0.05)
    queue = subprocess.run(["squeue", "-h", "-r", "-o", "%A %i"], capture_output=True, text=True).stdout.split("\n")
    job = next(line.split()[1] for line in queue if line.endswith("_0"))
    subprocess.run(["scontrol", "requeue", job], check=True)
    before = len(list(fora.glob("records/*.json")))
    assert 5 <= before < 40
    out, _ = sweep.communicate(timeout=500)  # Slurm lets it wait two minutes
    assert sweep.returncode == 0, out[-3000:]
    logs = "".join(path.read_text() for path in (tmp_path / "sweep/.submitit").rglob("*_log.out"))
    assert "40 samples, 0 of them finished" in logs
    for algo in ("fora", "reuse"):
        alone = start(f"algo={algo}", *MODEL, f"output_base_path={tmp_path}/alone")
        assert alone.communicate(timeout=300) and alone.returncode == 0
        mine, theirs = (read_experiment(tmp_path / kind / f"tiny-flux_{algo}") for kind in ("sweep", "alone"))
        assert [r.id for r in mine.records] == [r.id for r in theirs.records] and len(read_records(mine.folder)) == 40
        for a, b in zip(mine.records, theirs.records, strict=True):
            assert (mine.picture(a) == theirs.picture(b)).all()
