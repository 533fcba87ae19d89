"""Attempts to run code through a configuration: by `_target_`, through Hydra's own nodes, by a received folder."""

import os
import pickle
import shlex
import subprocess

import pytest
import yaml
from attack import ACCEPTED, attack, attack_in_turn
from attacked import all_refused, first_of, groups, lines, whole_command
from helpers import composed

from spectrum_bench.commands import run
from spectrum_bench.commands.entry import check_words
from spectrum_bench.sampling import run as sampling

pytestmark = pytest.mark.slow

# Where a part of a method stands -> the words that put a node there; a target in each of them.
PLACES = {
    "site": "algo=nocache ++site=NODE",
    "schedule": "++schedule=NODE",
    "forecaster": "++algo.forecaster=NODE",
    "constant": "++schedule.window=NODE",
    "deep": "++model.arguments.deep=[{deep:NODE}]",
    "callback": "+hydra.callbacks.x=NODE",
    "launcher": "++hydra.launcher=NODE",
    "sweeper": "++hydra.sweeper=NODE",
    "sweeper of a sweep": "-m ++hydra.sweeper=NODE algo=fora,nocache",
}
# Nodes that would leave the file `canary` behind, or tell that it was called.
TARGETS = """
{_target_:os.system,command:'touch canary'}
{_target_:os.popen,cmd:'touch canary'}
{_target_:os.mkdir,path:canary}
{_target_:posix.system,command:'touch canary'}
{_target_:subprocess.run,args:[touch,canary]}
{_target_:subprocess.Popen,args:[touch,canary]}
{_target_:subprocess.check_output,args:[touch,canary]}
{_target_:builtins.eval,_args_:["open('canary','w')"]}
{_target_:builtins.exec,_args_:["open('canary','w')"]}
{_target_:builtins.open,file:canary,mode:w}
{_target_:builtins.__import__,name:evil}
{_target_:io.open,file:canary,mode:w}
{_target_:pathlib.Path.touch,self:canary}
{_target_:pathlib.Path.unlink,_args_:[{_target_:pathlib.Path,_args_:[keep]}]}
{_target_:pathlib.Path.write_text,_args_:[{_target_:pathlib.Path,_args_:[canary]},x]}
{_target_:pathlib.Path,_args_:[canary]}
{_target_:shutil.rmtree,path:folder}
{_target_:shutil.copy,src:keep,dst:canary}
{_target_:logging.FileHandler,filename:canary}
{_target_:logging.config.dictConfig,config:{version:1}}
{_target_:logging.config.fileConfig,fname:keep}
{_target_:runpy.run_path,path_name:evil.py}
{_target_:importlib.import_module,name:evil}
{_target_:pickle.load,file:x}
{_target_:pickle.loads,data:x}
{_target_:joblib.load,filename:evil.pkl}
{_target_:torch.load,f:evil.pkl,weights_only:false}
{_target_:torch.hub.load,repo_or_dir:hub,model:x,source:local}
{_target_:torch.hub.load,repo_or_dir:nobody/nothing,model:x,source:github}
{_target_:torch.hub.download_url_to_file,url:'file:///etc/passwd',dst:canary}
{_target_:torch.utils.cpp_extension.load,name:x,sources:[x]}
{_target_:numpy.load,file:evil.pkl,allow_pickle:true}
{_target_:numpy.save,file:canary,arr:1}
{_target_:pandas.read_pickle,filepath_or_buffer:evil.pkl}
{_target_:yaml.unsafe_load,stream:x}
{_target_:huggingface_hub.hf_hub_download,repo_id:nobody/nothing,filename:x}
{_target_:urllib.request.urlretrieve,url:'file:///etc/passwd',filename:canary}
{_target_:webbrowser.open,url:x}
{_target_:ctypes.CDLL,name:evil.so}
{_target_:sys.exit}
{_target_:sys.setrecursionlimit,_args_:[1]}
{_target_:time.sleep,_args_:[1000]}
{_target_:timeit.timeit,stmt:"open('canary','w')"}
{_target_:cProfile.run,statement:"open('canary','w')"}
{_target_:code.interact}
{_target_:functools.partial,_args_:[{_target_:os.system,_partial_:true}]}
{_target_:functools.reduce,_args_:[x,y]}
{_target_:operator.methodcaller,_args_:[system]}
{_target_:hydra.utils.instantiate,config:{_target_:os.getcwd}}
{_target_:hydra.utils.get_method,path:os.system}
{_target_:hydra._internal.instantiate._instantiate2.instantiate,config:{_target_:os.getcwd}}
{_target_:evil.run}
{_target_:evil}
{_target_:spectrum_bench}
{_target_:spectrum_bench.commands.words.os.system,command:'touch canary'}
{_target_:spectrum_bench.sampling.records.write_atomically,path:canary,data:x}
{_target_:spectrum_bench.sampling.records.os.remove,path:keep}
{_target_:spectrum_bench.schedules.np.load,file:evil.pkl,allow_pickle:true}
{_target_:spectrum_bench.schedules.math.sqrt,_args_:[4]}
{_target_:spectrum_bench.schedules.__builtins__.get,_args_:[eval]}
{_target_:spectrum_bench.gates.functools.partial}
{_target_:spectrum_bench.forecasters.partial}
{_target_:spectrum_bench.forecasters._differences}
{_target_:spectrum_bench.caching.sites.stack.torch.load,f:evil.pkl}
{_target_:spectrum_bench.caching.sites.torch.load,f:evil.pkl}
{_target_:spectrum_bench.caching.peers.__dict__}
{_target_:spectrum_bench.caching.algorithm.Algorithm}
{_target_:spectrum_bench.schedules.full.__globals__}
{_target_:'spectrum_bench.schedules:full'}
{_target_:../evil}
{_target_:''}
{_target_:null}
{_target_:5}
{_target_:[os.system]}
{_target_:{_target_:os.system}}
{_target_:"${oc.env:HOME}"}
{_target_:"${model.name}"}
{a:{b:[{_target_:os.system,command:'touch canary'}]}}
"${oc.create:{_target_:os.system,command:'touch canary'}}"
"""
# Words that are no node at a place.
WORDS = """
--experimental-rerun=evil.pkl algo=nocache
--experimental-r evil.pkl
--config-path=folder --config-name=x
-cp folder
--config-dir=FOLDER schedule=unlink
--config-dir=FOLDER schedule=everywhere
--config-dir=FOLDER schedule=allowed
--config-dir=FOLDER hydra/launcher=shell
--config-dir=FOLDER -m hydra/sweeper=evil algo=fora,nocache
--config-dir FOLDER +hydra/callbacks=evil
-cd FOLDER hydra/job_logging=evil
hydra.searchpath=[file://FOLDER] schedule=unlink
hydra.searchpath=[file://FOLDER] --config-dir=FOLDER schedule=full
++hydra.job_logging.handlers.x.class=logging.FileHandler ++hydra.job_logging.handlers.x.filename=canary
++hydra.job_logging.handlers.x={(): os.system,command: 'touch canary'}
++hydra.job_logging.formatters.x={(): evil.run}
++hydra.hydra_logging.filters.x={(): evil.run}
++hydra.job_logging.handlers.x={class: logging.StreamHandler,stream: 'ext://evil.run'}
++hydra.job_logging.handlers.x={class: logging.handlers.SocketHandler,host: localhost,port: 1}
++hydra.callbacks="${oc.create:{x:{_target_:os.system}}}"
++hydra.launcher._target_=os.system
++hydra.launcher._target_="${oc.env:HOME}"
++hydra.sweeper._target_=evil.run
hydra/sweeper=optuna ++hydra.sweeper.sampler={_target_:evil.run}
hydra/sweeper=optuna hydra.sweeper.custom_search_space=evil.run
++hydra.sweeper.params={+hydra.callbacks.x._target_:evil.run}
plugins=evil
plugins=[1]
plugins=[../evil]
plugins=[a.b:c]
plugins=null
plugins=[os] ++site={_target_:os.path.join}
plugins=[evil] ++site={_target_:evil.sub.run}
plugins=[evil] ++site={_target_:evil}
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A stranger's folder of configurations, and code that must not run."""
    place = tmp_path_factory.mktemp("ground")
    (place / "keep").write_text("keep")
    (place / "evil.py").write_text("def run(*a, **k):\n    open('canary', 'w')\n\nopen('canary', 'w')\n")
    (place / "evil.pkl").write_bytes(pickle.dumps(subprocess.run))
    (place / "hub").mkdir()
    (place / "hub/hubconf.py").write_text("open('canary', 'w')\n\ndef x(): pass\n")
    partial = {"_target_": "spectrum_bench.schedules.full", "_partial_": True}
    unlink = {"_target_": "pathlib.Path.unlink", "_args_": [{"_target_": "pathlib.Path", "_args_": ["keep"]}]}
    yamls = {
        "schedule/unlink": unlink,
        "schedule/everywhere": {"schedule": partial, "hydra": {"callbacks": {"x": {"_target_": "evil.run"}}}},
        "schedule/allowed": {"schedule": {"_target_": "evil.run"}, "plugins": ["evil"]},
        "hydra/launcher/shell": {"_target_": "subprocess.run", "args": ["touch", "canary"]},
        "hydra/sweeper/evil": {"_target_": "evil.run"},
        "hydra/callbacks/evil": {"x": {"_target_": "evil.run"}},
        "hydra/job_logging/evil": {"version": 1, "handlers": {"x": {"class": "evil.run"}}},
    }
    for name, node in yamls.items():
        path = place / f"folder/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = "# @package _global_\n" if "schedule" in node else ""
        path.write_text(head + yaml.safe_dump(node))
    composed("algo=fora")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.setattr(run, "identify", lambda model: "weights")
        yield place


def checked(words: list[str]) -> None:
    """What comes before Hydra must be enough; where it is not, Hydra goes on to the method."""
    check_words("base", words)
    whole_command("base", words)


def at(place: str, node: str) -> list[str]:
    return [word.replace("NODE", node) for word in PLACES[place].split()]


def refused(cases: dict[str, list[str]], ground) -> None:
    all_refused(attack_in_turn({case: lambda words=words: checked(words) for case, words in cases.items()}, ground))
    assert (ground / "keep").read_text() == "keep"


@pytest.mark.parametrize("nodes", groups(lines(TARGETS)), ids=first_of)
def test_a_target_that_is_no_method(ground, nodes):
    refused({node: at("site", node) for node in nodes}, ground)


@pytest.mark.parametrize("node", ["{_target_:os.system,command:'touch canary'}", "{_target_:evil.run}"])
def test_a_target_in_other_places(ground, node):
    refused({place: at(place, node) for place in PLACES}, ground)


@pytest.mark.parametrize("cases", groups(lines(WORDS)), ids=first_of)
def test_other_ways_to_code(ground, cases):
    refused({line: shlex.split(line.replace("FOLDER", str(ground / "folder"))) for line in cases}, ground)


@pytest.mark.parametrize("given, verdict", [("plugins=[mine]", "accepted"), ("seed=1", "refused")])
def test_a_plugin_is_code_that_the_command_line_names(ground, monkeypatch, given, verdict):
    (ground / "mine.py").write_text("import numpy as np\n\ndef hold(times, t):\n    return np.eye(len(times))[-1]\n")
    monkeypatch.setattr(sampling, "run", lambda *_: os._exit(ACCEPTED))
    node = "++algo.forecaster={_target_: mine.hold, _partial_: true}"
    outcome = attack(lambda: checked([given, "algo=reuse", node]), ground)
    assert outcome.verdict == verdict, outcome
