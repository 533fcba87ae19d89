"""Wrong words on command lines, one case a line: each is refused in one line, without a model, and nothing is made."""

import os
import shlex
import socket

import pytest
from attack import ACCEPTED, attack
from attacked import accept, command, first_of, groups, ids, lines, refuse, whole_command
from helpers import composed, settings

from spectrum_bench.commands import compose as composing
from spectrum_bench.commands import reproduce, run, tune
from spectrum_bench.commands.compose import build
from spectrum_bench.lab import calibration  # noqa: F401  imported before children are
from spectrum_bench.reporting import page, paper  # noqa: F401
from spectrum_bench.sampling import models
from spectrum_bench.sampling import run as sampling
from spectrum_bench.sampling import settings as typed

pytestmark = pytest.mark.slow

LONG = "x" * 256
VERY_LONG = "y" * 5000

# Booleans, numbers, lists, names, paths: of a run.
RUN = f"""
num_inference_steps=true
num_inference_steps=0
num_inference_steps=-1
num_inference_steps=1.5
num_inference_steps=null
num_inference_steps=nan
num_inference_steps=inf
num_inference_steps=[50]
num_inference_steps='"50"'
num_inference_steps=1000000
num_inference_steps=1000000000
num_inference_steps=99999999999999999999999999999
num_inference_steps=${{nothing}}
num_inference_steps={{a:1}}
seed=true
seed=-1
seed=1.5
seed=null
seed=[1,2]
seed=nan
seed=9223372036854775808
seed=99999999999999999999999999999999999999999
samples_per_prompt=true
samples_per_prompt=0
samples_per_prompt=1000000000
samples_per_prompt=inf
samples_per_prompt=null
total_prompt_num=true
total_prompt_num=0
total_prompt_num=-3
total_prompt_num=2.5
total_prompt_num=[3]
total_prompt_num=99999999999999999999
ngpu=true
ngpu=0
ngpu=1000000000
ngpu=null
ngpu=two
threads=true
threads=0
threads=100000
threads=1099511627776
threads=null
warmup_samples=true
warmup_samples=-1
warmup_samples=1000000000
warmup_samples=null
keep_latents=true
keep_latents=-1
keep_latents=1e99
keep_latents=null
retry_failed=[1]
retry_failed=1
retry_failed='"false"'
retry_failed='no way'
retry_failed=null
runtime=null
runtime=5
runtime.batch_size=true
runtime.batch_size=0
runtime.batch_size=100000
runtime.batch_size=null
runtime.compile=1
runtime.compile=null
runtime.compile='"true"'
runtime.attention=5
runtime.attention=[a]
runtime.attention=nothing
+runtime.nothing=1
engine=null
engine=[1]
engine.address=5
engine.dashboard=1
+engine.nothing=1
device=gpu
device=cuda:99
device=[cpu]
device=cuda:-1
exp_name=.
exp_name=..
exp_name=./
exp_name=../x
exp_name=/tmp/x
exp_name=a//b
exp_name=null
exp_name=[a]
exp_name={{a:1}}
exp_name='""'
exp_name='a;b'
exp_name={LONG}
exp_name={VERY_LONG}
exp_name=a/{LONG}
output_base_path=null
output_base_path=[a]
output_base_path={{a:1}}
output_base_path='""'
output_base_path={LONG}
output_base_path={VERY_LONG}
prompt_file=null
prompt_file=[a]
prompt_file='""'
prompt_file={LONG}
prompt_file={VERY_LONG}
prompt_file=nowhere.txt
prompt_file=~nobody_here/x.txt
prompt_file=/
prompt_file=/dev/null
prompt_file=/dev/zero
prompt_file=/dev/urandom
prompt_file=/proc/self/mem
prompt_file=fifo
prompt_file=socket
prompt_file=loop
prompt_file=tohere
prompt_file=long
prompt_file=huge
prompt_file=latin
prompt_file=blank
prompt_file=binary
prompt_file=fifo/x
model.name=null
model.name=[a]
model.name=a/b/c
model.name=../x
model.name='""'
model.name=.
model.name=true
model.name={LONG}
model.repo=null
model.repo=5
model.repo=[a]
model.repo=true
model.repo={LONG}
model.repo=''
model.repo=~nobody_here/x
model.repo=/dev/null
model.repo=fifo
model.dtype=float128
model.dtype=null model.init=null model.width=null model.arguments=null
model.dtype=[float32]
+model.vae_dtype=int8
+model.vae_tiling=1
+model.variant=5
model.init=perhaps
model.init=[random]
model.judge=5
model.note=[1]
+model.metrics=5
+model.metrics=psnr
+model.metrics=[1]
model.width=true
model.width=0
model.width=-64
model.width=63
model.width=64.0
model.width=1600000
model.width=1000000000000000000000000000000
model.height=null
model.height=[64]
model.height=nan
+model.frame_stride=true
+model.frame_stride=0
+model.num_frames=5
+model.num_frames=true +model.fps=8
+model.num_frames=4 +model.fps=8
+model.num_frames=1000000001 +model.fps=8
+model.num_frames=9 +model.fps=true
+model.num_frames=9 +model.fps=nan
+model.num_frames=9 +model.fps=inf
+model.num_frames=9 +model.fps=0
+model.num_frames=9 +model.fps=1e9
+model.num_frames=10001 +model.fps=8 model.width=8192 model.height=8192
model.arguments=null
model.arguments=5
model.arguments=[1]
model.arguments.guidance_scale=high
model.arguments.guidance_scale=null
model.arguments.guidance_scale=[1,2]
model.arguments.guidance_scale=nan
model.arguments.guidance_scale=inf
model.arguments.guidance_scale=true
model.arguments.max_sequence_length=-1
model.arguments.max_sequence_length=0
model.arguments.max_sequence_length=true
model.arguments.max_sequence_length=1000000000
model.arguments.height=1000000000
+model.arguments.num_images_per_prompt=0
+model.arguments.num_images_per_prompt=-1
+model.arguments.num_images_per_prompt=4
+model.arguments.output_type=pil
+model.arguments.prompt=x
+model.arguments.generator=1
+model.arguments.return_dict=true
+model.arguments.callback_on_step_end=1
+model.scheduler=[1]
+model.scheduler=5
+model.scheduler={{shift:nan}}
model=null
model=[a,b]
model=../algo/spectrum
model={LONG}
algo=null
algo=spectrun
algo=../model/flux
algo.name=null
algo.name=[a]
algo.name=a/b
algo=spectrum algo.forecaster=5
algo=spectrum algo.forecaster=[1]
algo=spectrum algo.m=true
algo=spectrum algo.m=1e9
algo=spectrum algo.m=1000000000
algo=spectrum algo.m=-1
algo=spectrum algo.m=null
algo=spectrum algo.m=[4]
algo=spectrum algo.w=true
algo=spectrum algo.w=nan
algo=spectrum algo.w=2
algo=spectrum algo.w=null
algo=spectrum algo.lam=true
algo=spectrum algo.lam=inf
algo=spectrum algo.lam=-1
algo=spectrum algo.lam=1e308
algo=taylorseer algo.order=true
algo=taylorseer algo.order=1000000
algo=taylorseer algo.order=-1
algo=taylorseer algo.order=null
algo=lagrange algo.order=1000000
algo=adams_bashforth algo.order=100000000
algo=hicache algo.sigma=true
algo=hicache algo.sigma=nan
window_size=true
window_size=1e308
window_size=nan
window_size=inf
window_size=0
window_size=null
window_size=[2]
flex_window=true
flex_window=-1
flex_window=nan
flex_window=1e300
warmup_steps=true
warmup_steps=0
warmup_steps=99999999999999999999
warmup_steps=null
schedule=mask
schedule=mask schedule.steps=[true,false]
schedule=mask schedule.steps=true
schedule=mask schedule.steps=[0,1.5]
schedule=mask schedule.steps=[0,-1]
schedule=mask schedule.steps=[0,50]
schedule=mask schedule.steps=null
schedule=mask schedule.steps=[]
schedule=mask schedule.steps=[0,99999999999999999999]
schedule=mask schedule.steps=[[0]]
schedule={{a:1}}
schedule=uniform schedule.interval=true
schedule=uniform schedule.interval=0
schedule=uniform schedule.interval=1e99
algo=teacache schedule.threshold=nan
algo=teacache schedule.threshold=true
algo=teacache schedule.threshold=-1
algo=teacache schedule.threshold=null
algo=teacache schedule.polynomial=[1e308]
algo=teacache schedule.polynomial=[nan]
algo=teacache schedule.polynomial=5
algo=teacache schedule.first=true
algo=magcache schedule.ratios=[nan]
algo=magcache schedule.ratios=[1e308]
algo=magcache schedule.ratios=[-1]
algo=magcache schedule.ratios=x
algo=magcache schedule.longest=true
algo=magcache schedule.retention=true
site=../model/flux
site=nothing
algo=toca site.ratio=true
algo=toca site.ratio=nan
algo=clusca site.count=1e99
algo=clusca site.rounds=1000000000
nothing=1
+nothing
seed
=1
'a b'
seed=[
seed=${{oc.env:NOTHING_IS_CALLED_SO}}
seed=${{seed}}
seed=1,2
"""
# A few of them through Hydra's own main function, and what only that sees.
WHOLE = """
seed=true
runtime=null
exp_name=.
algo=spectrum algo.m=1e9
algo=teacache schedule.polynomial=[nan]
-m algo=fora,nothing
-m hydra/launcher=nothing
hydra/sweeper=nothing
"""
# configs/calibration/<algo>/tiny-flux.json of a stranger.
CALIBRATIONS = """
magcache
magcache []
magcache null
magcache 5
magcache {
magcache {"ratios": [1.0, 0.9
magcache {"ratios": null}
magcache {"ratios": 5}
magcache {"ratios": "1.0"}
magcache {"ratios": []}
magcache {"ratios": [1]}
magcache {"ratios": [1, 1, 1, 1], "steps": 50}
magcache {"ratios": [1, 1, 1, NaN]}
magcache {"ratios": [1, 1, 1, Infinity]}
magcache {"ratios": [1, 1, 1, 1e308]}
magcache {"ratios": [1, 1, 1, 1e999]}
magcache {"ratios": [1, 1, 1, -1]}
magcache {"ratios": [1, 1, 1, true]}
magcache {"ratios": [1, 1, 1, "1"]}
magcache {"ratios": [1, 1, 1, null]}
magcache {"ratios": [[1], [1], [1], [1]]}
magcache {"ratios": [1, 1, 1, 1], "ratios": [1, 1, 1, 1]}
magcache {"ratios": [1, 1, 1, 1], "retention": "x"}
magcache {"ratios": [1, 1, 1, 1], "retention": NaN}
magcache {"ratios": [1, 1, 1, 1], "retention": -1}
magcache {"ratios": [1, 1, 1, 1], "always": 5}
magcache {"ratios": [1, 1, 1, 1], "always": ["x"]}
magcache {"ratios": {"_target_": "os.system"}}
teacache {"polynomial": [NaN], "first": 1, "last": 1}
teacache {"polynomial": [1e308], "first": 1, "last": 1}
teacache {"polynomial": "x", "first": 1, "last": 1}
teacache {"polynomial": [1.0, 0.0], "first": "x", "last": 1}
teacache {"polynomial": [1.0, 0.0], "first": -1, "last": 1}
teacache {"polynomial": [1.0, 0.0], "first": 1.5, "last": 1}
teacache {"polynomial": [1.0, 0.0], "weights": 5}
sencache {"timesteps": [1, 0.5, 0.2, 0.1], "latent": [1, 1, 1, 1], "time": [1]}
sencache {"timesteps": [1, 0.5, 0.2, 0.1], "latent": [1, 1, 1, NaN], "time": [1, 1, 1, 1]}
hyca {"solvers": ["nothing"], "channels": [0]}
hyca {"solvers": ["taylor1"], "channels": [1]}
hyca {"solvers": [5], "channels": [0]}
hyca {"solvers": ["taylor1"], "channels": ["0"]}
"""
# Of the other commands.
BUDGET = f"""
key=seed
key=null
key=5
key=[a]
key={LONG}
key=schedule.nothing
key=model.name
key=schedule
passes=true
passes=nan
passes=null
passes=0
passes=1e99
tries=true
tries=0
tries=1000000000
"""
CALIBRATE = """
clusters=null
clusters=true
clusters=0
clusters=100000
degree=true
degree=-1
degree=1000000
mask=[0,2,5]
algo=hindcast mask=5
algo=hindcast algo.passes=3 mask=[1,2,5]
algo=hindcast algo.passes=4 mask=[0,2,5]
algo=hindcast algo.passes=3 mask=[0,2,50]
algo=hindcast algo.passes=3 mask=[0,2,x]
algo=hindcast algo.passes=3 mask={a:0}
num_inference_steps=3
algo=fora
model.name=null
model.name=a/b/c
"""
TUNE = """
passes=true
passes=nan
passes=0
passes=null
passes=[14]
"""
# Command lines of folders.
EVALUATE = f"""

nowhere
nowhere reference=nowhere
nowhere reference=
reference=nowhere
{LONG} reference=nowhere
nowhere reference={LONG}
{VERY_LONG} reference=nowhere
. reference=.
fifo reference=fifo
loop reference=loop
nowhere referense=x
--force
"""
REPORT = f"""
nowhere reference=nowhere out=out
nowhere reference=nowhere
nowhere reference=nowhere out=out rows=0
nowhere reference=nowhere out=out rows=-1
nowhere reference=nowhere out=out rows=1.5
nowhere reference=nowhere out=out rows=²
nowhere reference=nowhere out=out rows=99999999999999999999
nowhere reference=nowhere out=out margin=x
nowhere reference=nowhere out=out margin=-1
nowhere reference=nowhere out=out margin=nan
nowhere reference=nowhere out=out margin=5000
nowhere reference=nowhere out=out margin=1e6
nowhere reference=nowhere out=out margin=²
nowhere reference=nowhere out=out matters=psnr
nowhere reference=nowhere out=out matters=psnr:-1
nowhere reference=nowhere out=out matters=psnr:1e9
nowhere reference=nowhere out=out matters=nothing:1
nowhere reference=nowhere out=out categories=nowhere.csv
nowhere reference=nowhere out=out categories=nowhere
nowhere reference=nowhere out=out categories=/dev/zero
nowhere reference=nowhere out=out align=speed
nowhere reference=nowhere out={LONG}
{LONG} reference=nowhere out=out
"""
REPRODUCE = f"""
nothing
table1_flux model=nothing
table1_flux rows=x
table1_flux exp_name=x
table1_flux algo=fora
{LONG}
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder with prompt files that are none; before a model is opened a child ends as accepted."""
    tmp_path, monkeypatch = tmp_path_factory.mktemp("ground"), pytest.MonkeyPatch()
    composed("algo=fora")  # what Hydra and children import is imported once
    build(settings("algo=diffusers_fbcache"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "tohere").symlink_to(".")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server, monkeypatch.context() as here:
        here.chdir(tmp_path)
        server.bind("socket")
    (tmp_path / "long").write_text("a red ring\n" + "very " * 20_000)
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**30)
    (tmp_path / "latin").write_bytes("ein grüner Ring".encode("latin1"))
    (tmp_path / "blank").write_bytes(b"\xef\xbb\xbf \n\t\r\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for module, name in (
        (models, "open_pipeline"),
        (sampling, "run"),
        (tune, "references"),
        (reproduce, "run"),
    ):
        monkeypatch.setattr(module, name, accept)
    monkeypatch.setattr(run, "identify", find)
    yield tmp_path
    monkeypatch.undo()


def find(model: typed.ModelSettings) -> str:
    """The weights are looked for, and not read."""
    if model.init != "random":
        models.find_weights(models._repo(model))
    return "weights"


TABLES = [("base", RUN), ("budget", BUDGET), ("calibrate", CALIBRATE), ("tune", TUNE)]
TABLES += [("evaluate", EVALUATE), ("report", REPORT), ("reproduce", REPRODUCE)]
CASES = [(name, line) for name, table in TABLES for line in lines(table)]


@pytest.mark.parametrize("cases", groups(CASES), ids=first_of)
def test_wrong_words(ground, cases):
    refuse(cases, ground)


@pytest.mark.parametrize("line", ["", "algo=spectrum", "algo=nocache device=cpu seed=7", "-m algo=fora,nocache"])
def test_right_words_go_on(ground, line):
    assert attack(lambda: whole_command("base", shlex.split(line)), ground).code == ACCEPTED


@pytest.mark.parametrize("line", lines(WHOLE), ids=ids)
def test_wrong_words_through_hydra(ground, line):
    outcome = attack(lambda: whole_command("base", shlex.split(line)), ground)
    assert outcome.verdict == "refused", outcome


@pytest.mark.parametrize("line", lines(CALIBRATIONS), ids=ids)
def test_wrong_calibrations(ground, tmp_path, monkeypatch, line):
    algo, _, text = line.partition(" ")
    (tmp_path / algo).mkdir()
    (tmp_path / algo / "tiny-flux.json").write_text(text)
    monkeypatch.setattr(composing, "CALIBRATION", tmp_path)
    outcome = attack(lambda: command("base", [f"algo={algo}"]), ground)
    assert outcome.verdict == "refused", outcome
