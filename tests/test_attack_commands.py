"""Wrong words and received files for the commands that no other test attacks, from cost to conformance."""

import json
import os
import shlex

import fabricate
import numpy as np
import pytest
from attack import ACCEPTED, attack
from attacked import accept, command, first_of, groups, ids, lines, refuse
from helpers import composed, settings
from PIL import Image
from safetensors.numpy import save

from spectrum_bench.commands import compose as composing
from spectrum_bench.commands import replay, rows, run, search
from spectrum_bench.commands.compose import build
from spectrum_bench.lab import replay as replaying  # noqa: F401  imported before children are
from spectrum_bench.lab import searched, traces, uncached  # noqa: F401
from spectrum_bench.reporting import block, page  # noqa: F401
from spectrum_bench.sampling import counting, models
from spectrum_bench.sampling import run as sampling
from spectrum_bench.scoring.foreign import experiments, strangers, times  # noqa: F401

pytestmark = pytest.mark.slow

LONG = "x" * 256

COST = f"""
passes=true
passes=0
passes=-1
passes=51
passes=1.5
passes=nan
passes=[14]
passes=x
card=true
card=0
card=-24
card=nan
card=inf
card=1e30
card=x
card=[24]
card=null passes=99
algo=nothing
model=nothing
pases=14
prompt_file=nowhere.txt
prompt_file=loop
prompt_file=fifo
num_inference_steps=0
algo.w=2
site={LONG}
"""
TRACE = f"""
trace=null
trace=[a]
trace={{a:1}}
trace=''
trace={LONG}
total_prompt_num=0
total_prompt_num=true
seed=-1
seed=x
prompt_file=nowhere
prompt_file=fifo
prompt_file=/dev/zero
algo=nothing
model=nothing
model.repo=nobody/nothing
trase=x
num_inference_steps=1e9
"""
REPLAY = f"""
trace=null
trace=nowhere
trace=.
trace={LONG}
trace=[a]
trace=fifo
trace=loop
trace=/dev/zero
trace=empty
trace=text
trace=huge
trace=good num_inference_steps=20
trace=good algo=teacache
trace=good algo=nothing
trace=good against=nowhere
trace=good against=empty
trace=good against=null out=[a]
trace=good out={LONG}
trace=good out=''
trace=good schedule=mask
trace=good schedule=mask schedule.steps=[60]
trace=good algo.w=3
"""
GOOD = {"gram": np.zeros((1, 9, 9)), "matrix": np.eye(9)}
# What a received file of traces may hold: arrays by name, and the text about them.
TRACES = {
    "no arrays": ({}, {}),
    "no gram": ({"matrix": np.eye(9)}, {}),
    "no matrix": ({"gram": np.zeros((1, 9, 9))}, {}),
    "gram of one dimension": ({"gram": np.zeros(9), "matrix": np.eye(9)}, {}),
    "no prompt": ({"gram": np.zeros((0, 9, 9)), "matrix": np.eye(9)}, {}),
    "gram not square": ({"gram": np.zeros((1, 9, 8)), "matrix": np.eye(9)}, {}),
    "gram and matrix differ": ({"gram": np.zeros((1, 9, 9)), "matrix": np.eye(8)}, {}),
    "gram with nan": ({"gram": np.full((1, 9, 9), np.nan), "matrix": np.eye(9)}, {}),
    "matrix with inf": ({"gram": np.zeros((1, 9, 9)), "matrix": np.full((9, 9), np.inf)}, {}),
    "gram of whole numbers": ({"gram": np.zeros((1, 9, 9), int), "matrix": np.eye(9)}, {}),
    "features of another size": (GOOD | {"features": np.zeros((1, 3, 3))}, {}),
    "features for others": (GOOD | {"features": np.zeros((2, 8, 8))}, {}),
    "about is no JSON": (GOOD, {"about": "{"}),
    "about is a list": (GOOD, {"about": "[]"}),
    "about is missing": (GOOD, None),
    "of another model": (GOOD, {"about": '{"weights": "others"}'}),
}
SEARCH = f"""
passes=true
passes=1
passes=50
passes=0
passes=null
passes=1.5
passes=[14]
passes=nan
algo=nocache
algo=diffusers_fbcache
algo=nothing
algo.name=../x
algo.name={LONG}
model.name=../x
model.repo=nobody/nothing
prompt_file=nowhere
total_prompt_num=0
seed=-1
pases=14
"""
# What a received file of searched steps may hold, for 4 passes.
SEARCHED = """
[]
null
{
{"mask": []}
{"mask": null, "steps": 50}
{"mask": 5, "steps": 50}
{"mask": "0", "steps": 50}
{"mask": {"_target_": "os.system"}, "steps": 50}
{"mask": [0, 9, 20, 30]}
{"mask": [0, 9, 20, 30], "steps": 20}
{"mask": [0, 9, 20, 30], "steps": "50"}
{"mask": [0, 9, 20, 30], "steps": [50]}
{"mask": [0, 9, 20, 50], "steps": 50}
{"mask": [0, 9, 20, -1], "steps": 50}
{"mask": [1, 9, 20, 30], "steps": 50}
{"mask": [0, 9, 9, 30], "steps": 50}
{"mask": [0, 9, 20], "steps": 50}
{"mask": [0, 9, 20, 30, 40], "steps": 50}
{"mask": [0, 9, 20, 1e9], "steps": 50}
{"mask": [0, 9, 20, 30.5], "steps": 50}
{"mask": [0, 9, 20, NaN], "steps": 50}
{"mask": [0, 9, 20, true], "steps": 50}
{"mask": [0, 9, 20, "30"], "steps": 50}
{"mask": [[0], [9], [20], [30]], "steps": 50}
{"mask": [0, 9, 20, 30], "mask": [0, 9, 20, 30], "steps": 50}
{"mask": ["${oc.env:HOME}", 9, 20, 30], "steps": 50}
"""
ROWS = f"""
nowhere
.
fifo
loop
/dev/zero
empty
huge
{LONG}
rows stranger
rows exp_name=x
rows seed=-1
rows model=nothing
rows num_inference_steps=0
rows _target_=os.system
rows --help=x
"""
# What a file of rows may hold.
ROW_FILES = [
    "a algo=nothing\n",
    "a algo=spectrum algo.w=9\n",
    "a algo=fora\na algo=reuse\n",
    "../a algo=fora\n",
    "/tmp/a algo=fora\n",
    f"{LONG} algo=fora\n",
    "a 'algo=fora\n",
    "a algo=fora exp_name=b\n",
    "a stranger\n",
    "a seed=-1\n",
    "a -m algo=fora,reuse\n",
    "a algo=fora,reuse\n",
    "a ++site={_target_:os.system,command:ls}\n",
    "# nothing\n\n",
    "a hydra.run.dir=x\n",
    "a \x00\n",
    "a prompt_file=nowhere\n",
    "a algo=fora ngpu=0\n",
]
SCORE = f"""
nowhere reference=pictures
pictures reference=nowhere
pictures
pictures reference=pictures
empty reference=pictures
others reference=pictures by=size
others reference=pictures by=nowhere.csv
others reference=pictures by=text.csv
others reference=pictures by=fifo.csv
others reference=pictures times=nowhere
others reference=pictures times=text
others reference=pictures times=/dev/zero
others reference=pictures times=fifo
others reference=pictures prompts=nowhere
others reference=pictures prompts=fifo
others reference=pictures metrics=fvd
others reference=pictures rows=0
others reference=pictures rows=x
others reference=pictures markdown=1
others reference=pictures wat=1
others reference=pictures out={LONG}
bomb reference=pictures
torn reference=pictures
pipes reference=pictures
--reference=pictures
"""
VERIFY = f"""
nowhere
empty
pictures
fifo
loop
{LONG}
empty prompts=0
empty prompts=x
empty device=/dev/zero
empty stranger=1
--prompts=4
"""
HOOK = "cache=diffusers:FirstBlockCacheConfig(threshold=0.1)"
CONFORMANCE = f"""
pipeline=random:flux
{HOOK}
pipeline=random:nothing {HOOK}
pipeline=random: {HOOK}
pipeline=nowhere {HOOK}
pipeline=/dev/zero {HOOK}
pipeline=fifo {HOOK}
pipeline=loop {HOOK}
pipeline=empty {HOOK}
pipeline={LONG} {HOOK}
pipeline=random:flux cache=fbcache
pipeline=random:flux cache=diffusers:open('made','w')
pipeline=random:flux cache=diffusers:AConfig(a=open('made','w'))
pipeline=random:flux cache=diffusers:AConfig(a=[i-for-i-in-(1,2)])
pipeline=random:flux cache=diffusers:AConfig(a={"(" * 300})
pipeline=random:flux cache=diffusers:AConfig(a={"-" * 3000}1)
pipeline=random:flux cache=diffusers:AConfig(a=9**9**9)
pipeline=random:flux cache=os:system
pipeline=random:flux cache=os:system,
pipeline=random:flux cache={LONG * 3}:on,off
pipeline=random:flux {HOOK} never=nonsense
pipeline=random:flux {HOOK} steps=0
pipeline=random:flux {HOOK} steps=1e3
pipeline=random:flux {HOOK} steps={"9" * 5000}
pipeline=random:flux {HOOK} size=-64
pipeline=random:flux {HOOK} size=99999
pipeline=random:flux {HOOK} call=nothing
pipeline=random:flux {HOOK} call=[1]
pipeline=random:flux {HOOK} call={{1:2}}
pipeline=random:flux {HOOK} call={{'a':open('made','w')}}
pipeline=random:flux {HOOK} dtype=int8
pipeline=random:flux {HOOK} guided=1
pipeline=random:flux {HOOK} compile=inductor
pipeline=random:flux {HOOK} compile=1
pipeline=random:flux {HOOK} device=/dev/zero
pipeline=random:flux {HOOK} json=nowhere/found.json
pipeline=random:flux {HOOK} json=empty
pipeline=random:flux {HOOK} json=fifo
pipeline=random:flux {HOOK} stranger=1
pipeline=random:flux {HOOK} stranger
pipeline=random:flux {HOOK} --json=x
"""
TRY = f"""
model=tiny-flux
algo=nothing
algo=spectrum model=nothing
algo=spectrum total_prompt_num=-1
algo=spectrum total_prompt_num=many
algo=spectrum exp_name=x
algo=spectrum output_base_path=x
algo=spectrum out=
algo=spectrum out=fifo
algo=spectrum out={LONG}
algo=spectrum algo.w=x
algo=spectrum seed=-1
algo=spectrum stranger=1
algo=spectrum stranger
algo=spectrum _target_=os.system
algo=spectrum hydra.run.dir=x
"""
CASES = [("cost", line) for line in lines(COST)] + [("trace", line) for line in lines(TRACE)]
CASES += [("replay", line) for line in lines(REPLAY)] + [("search", line) for line in lines(SEARCH)]
CASES += [("rows", line) for line in lines(ROWS)] + [("score", line) for line in lines(SCORE)]
CASES += [("verify", line) for line in lines(VERIFY)] + [("try", line) for line in lines(TRY)]
CASES += [("conformance", line) for line in lines(CONFORMANCE)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder with files that are none. A child that would open or count a model, or sample rows, ends as accepted."""
    home, monkeypatch = tmp_path_factory.mktemp("ground"), pytest.MonkeyPatch()
    composed("algo=fora")  # what Hydra and children import is imported once
    build(settings("algo=diffusers_fbcache"))
    (home / "loop").symlink_to("loop")
    os.mkfifo(home / "fifo")
    os.mkfifo(home / "fifo.csv")
    for name in ("empty", "pictures", "others", "torn", "bomb", "pipes"):
        (home / name).mkdir()
    (home / "text").write_text("no arrays\n")
    (home / "text.csv").write_text("no,table\n1\n")
    (home / "rows").write_text("a algo=fora\n")
    with open(home / "huge", "wb") as file:
        file.truncate(2**34)
    good = {"gram": np.zeros((1, 51, 51)), "matrix": np.eye(51)}
    about = {"weights": "weights", "steps": 50, "guidance": 3.5}
    (home / "good").write_bytes(save(good, {"about": json.dumps(about)}))
    pictures = fabricate.pictures(fabricate.captions(3))
    for name, images in {"pictures": pictures, "others": fabricate.noisy(pictures, 9)}.items():
        for i, picture in enumerate(images):
            Image.fromarray(picture).save(home / name / f"{i}.png")
    for i in range(3):
        data = (home / f"pictures/{i}.png").read_bytes()
        (home / f"torn/{i}.png").write_bytes(data[: len(data) // 2])
        Image.new("1", (40_000, 40_000)).save(home / f"bomb/{i}.png") if i == 0 else None
        (home / f"bomb/{i}.png").exists() or (home / f"bomb/{i}.png").write_bytes(data)
    os.mkfifo(home / "pipes/0.png")
    monkeypatch.setattr(models, "open_pipeline", accept)
    monkeypatch.setattr(sampling, "run", accept)
    monkeypatch.setattr(counting, "count", accept)
    monkeypatch.setattr(rows, "sample", accept)
    monkeypatch.setattr(replay, "identify", lambda model: "weights")
    monkeypatch.setattr(run, "identify", lambda model: models.find_weights(models._repo(model)) and "weights")
    monkeypatch.setattr(composing, "CALIBRATION", home / "calibration")
    monkeypatch.setattr(search, "CALIBRATION", home / "calibration")
    yield home
    monkeypatch.undo()


@pytest.mark.parametrize("cases", groups(CASES), ids=first_of)
def test_wrong_words(ground, cases):
    refuse(cases, ground)


@pytest.mark.parametrize(
    "name, line",
    [("cost", "algo=spectrum"), ("trace", ""), ("search", "algo=taylorseer site=last_block"), ("rows", "rows")],
)
def test_right_words_go_on(ground, name, line):
    assert attack(lambda: command(name, shlex.split(line)), ground).code == ACCEPTED


@pytest.mark.parametrize("what", TRACES)
def test_received_traces(ground, what):
    arrays, about = TRACES[what]
    here = {"about": json.dumps({"weights": "weights", "steps": 8, "guidance": 3.5})}
    (ground / "received").write_bytes(save(arrays, None if about is None else here | about))
    words = ["trace=received", "num_inference_steps=8", "algo=fora", "site=last_block"]
    outcome = attack(lambda: command("replay", words), ground)
    assert outcome.verdict == "refused", outcome


@pytest.mark.parametrize("text", ROW_FILES, ids=ids)
def test_received_rows(ground, text):
    (ground / "received").write_text(text)
    outcome = attack(lambda: command("rows", ["received", "model=tiny-flux"]), ground)
    assert outcome.verdict == "refused", outcome


def run_searched(folder, monkeypatch, text):
    """The outcome of a run by the received steps."""
    path = folder / "searched/4/spectrum/tiny-flux.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    monkeypatch.setattr(composing, "CALIBRATION", folder)
    words = ["algo=spectrum", "schedule=searched", "schedule.passes=4", "num_inference_steps=50"]
    return attack(lambda: command("base", words), folder)


@pytest.mark.parametrize("text", lines(SEARCHED), ids=ids)
def test_received_steps(ground, tmp_path, monkeypatch, text):
    outcome = run_searched(tmp_path, monkeypatch, text)
    assert outcome.verdict == "refused", outcome


def test_right_steps_go_on(ground, tmp_path, monkeypatch):
    text = '{"mask": [0, 9, 20, 30], "steps": 50}'
    assert run_searched(tmp_path, monkeypatch, text).code == ACCEPTED
