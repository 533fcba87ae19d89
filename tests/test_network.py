"""Nothing is asked of the network unbidden: what commands and their processes look up or connect to, told by Python's
own audit hook in each of them. (What Ray's C++ does with sockets Python does not hear; it connects within the machine.)
"""

import ipaddress
import os
import socket
import subprocess
import sys
from pathlib import Path

import fabricate
import psutil
import pytest
from helpers import ROOT

pytestmark = pytest.mark.slow

LISTENING = Path(__file__).with_name("listening")
OWN = {address.address.split("%")[0] for addresses in psutil.net_if_addrs().values() for address in addresses}


def heard(tmp_path, *command) -> list[str]:
    """Runs a command, and tells every address outside of this machine that it or one of its processes asked for."""
    log = tmp_path / "heard"
    environment = {**os.environ, "PYTHONPATH": str(LISTENING), "HEARD": str(log), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if not is_here(line.split("\t")[1])]


def is_here(host: str) -> bool:
    """Whether a host's name or address, or the path of a socket, is of this machine."""
    if host in ("None", "", "localhost", socket.gethostname()) or host.startswith(("/", "\0", "b'")) or host in OWN:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


LOOKS_UP = "import socket; socket.gethostbyname('a.invalid')"


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.getaddrinfo('a.invalid', 80)",
        "import socket; s = socket.socket(); s.settimeout(0.1); s.connect(('192.0.2.77', 9))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.77', 9))",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LOOKS_UP!r}])",
    ],
)
def test_the_ear_hears(tmp_path, code):
    wrapped = f"try:\n    exec({code!r})\nexcept OSError:\n    pass"
    assert len(heard(tmp_path, "-c", wrapped)) == 1


@pytest.fixture
def scored(tmp_path):
    prompts = fabricate.captions(4)
    pictures = fabricate.pictures(prompts)
    fabricate.experiment(tmp_path / "nocache", prompts, pictures)
    fabricate.experiment(tmp_path / "fast", prompts, fabricate.noisy(pictures, 9), "fora", 14)
    return tmp_path


def test_scores_and_reports_stay_at_home(scored):
    fast, reference = scored / "fast", f"reference={scored}/nocache"
    metrics = "metrics=psnr,ssim,lpips,clip,imagereward,caption"  # those without weights say so, and fetch none
    assert not heard(scored, "src/evaluate.py", fast, reference, metrics)
    assert not heard(scored, "src/report.py", fast, reference, f"out={scored}/report")


def test_a_run_and_its_workers_stay_at_home(tmp_path):
    """Two workers are Ray's."""
    words = ["model=tiny-flux", "algo=spectrum", "num_inference_steps=8", "total_prompt_num=2", "ngpu=2"]
    places = [f"output_base_path={tmp_path}", "exp_name=x", "warmup_samples=0"]
    assert not heard(tmp_path, "src/text_to_image.py", *words, *places)
    processes = {line for line in (tmp_path / "heard").read_text().splitlines() if line.startswith("started")}
    for name in ("default_worker.py", "dashboard.py"):
        assert any(name in line for line in processes)
