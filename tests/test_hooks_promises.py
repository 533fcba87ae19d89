"""The conformance test for other people's caching hooks: each broken promise is told, and no kept one is."""

import ast
import inspect
import json
import re
import runpy
import subprocess
import sys

import pytest
import torch

from spectrum_bench.commands import conformance
from spectrum_bench.conformance.words import Config, Named, read_cache
from spectrum_bench.errors import SOME_FAILED, UserError
from spectrum_bench.paths import ROOT, environment_with_package
from spectrum_bench.sampling.small import MAKERS

FBC = "diffusers:FirstBlockCacheConfig(threshold=0.1)"
# A cache of the whole output: three of four steps reuse. Each fault breaks one promise.
MODULE = """
import torch

FAULTS = set()
SEEN = {}


def enable(pipe):
    for network in (pipe.transformer, getattr(pipe, "transformer_2", None)):
        if network is not None:
            wrap(network)


def wrap(network):
    inner, state = network.forward, {}

    def forward(*args, **kwargs):
        time = float(kwargs["timestep"].flatten()[0])
        if "forgets nothing" not in FAULTS and time > state.get("time", 0):
            state.clear()
        state["branch"] = state.get("branch", -1) + 1 if time == state.get("time") else 0
        branch = 0 if "mixes branches" in FAULTS else state["branch"]
        state["time"] = time
        count, kept = state.get(branch, (0, None))
        shape = kwargs["hidden_states"].shape
        if kept is None or count % 4 == 0 or "never skips" in FAULTS or shape != kept[0].shape:
            kept = inner(*args, **kwargs)
        elif "keeps computing" in FAULTS:
            inner(*args, **kwargs)
        state[branch] = (count + 1, kept)
        if "holds" in FAULTS:
            SEEN.setdefault("kept", []).append(torch.zeros(1000))
        return kept

    network.forward = forward


def disable(pipe):
    if "stays" not in FAULTS:
        for network in (pipe.transformer, getattr(pipe, "transformer_2", None)):
            vars(network).pop("forward", None) if network is not None else None


def full(pipe):
    FAULTS.add("never skips")
    enable(pipe)
    if "rounds" in FAULTS:
        inner = pipe.transformer.forward
        pipe.transformer.forward = lambda *args, **kwargs: (inner(*args, **kwargs)[0] * 1.0000001,)
"""
BROKEN = {
    "never skips": {"skips"},
    "forgets nothing": {"a, b, a", "interrupted"},
    "mixes branches": {"branches", "guidance of nothing"},
    "stays": {"gone afterwards"},
    "holds": {"gone afterwards"},
    "rounds": {"never skips"},
    "keeps computing": {"skips"},
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    (tmp_path / "my_cache.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_cache", None)


def bench(pipeline: str, cache: str, steps: int = 5, **more: str):
    options = conformance.OPTIONS | {"pipeline": pipeline, "cache": cache, "steps": str(steps), **more}
    return conformance.open_bench({key: str(value) for key, value in options.items()})


WORDS = {
    FBC: Named(FBC, "diffusers", (Config("FirstBlockCacheConfig", {"threshold": 0.1}),)),
    "diffusers:SeaCacheConfig": Named("diffusers:SeaCacheConfig", "diffusers", (Config("SeaCacheConfig"),)),
    "a.b:on,off": Named("a.b:on,off", "a.b", functions=("on", "off")),
}
BOTH = "cachedit:DBCacheConfig(max_warmup_steps=2)+DMDCalibratorConfig(order=-1)"
CALIBRATED = (Config("DBCacheConfig", {"max_warmup_steps": 2}), Config("DMDCalibratorConfig", {"order": -1}))


@pytest.mark.parametrize(("text", "named"), [*WORDS.items(), (BOTH, Named(BOTH, "cachedit", CALIBRATED))])
def test_names_and_literals_are_read(text, named):
    assert read_cache(text) == named


@pytest.mark.parametrize(
    "text",
    [
        "fbcache",
        "diffusers:",
        "diffusers:FirstBlockCacheConfig(0.1)",
        "diffusers:FirstBlockCacheConfig(threshold=open('x'))",
        "diffusers:FirstBlockCacheConfig(**{'threshold': 1})",
        "diffusers:FirstBlockCacheConfig(threshold=)",
        "diffusers:__import__('os').system('true')",
        "diffusers:DiffusionPipeline()",
        "diffusers:AConfig()+BConfig()",
        "cachedit:AConfig()+BConfig()+CConfig()",
        "diffusers:AConfig(a=" + "(" * 500 + ")",
        "diffusers:AConfig(a=" + "9" * 3900 + ".)" + " " * 200,
        "module:one",
        "module:one,two,three",
        "module:one.__class__,two",
        "a b:on,off",
        "diffusers:AConfig(\x00)",
    ],
)
def test_what_is_no_name_with_literals_is_refused(text):
    with pytest.raises(UserError) as refusal:
        read_cache(text)
    assert "\n" not in str(refusal.value) and "write diffusers:" in str(refusal.value)


def test_nothing_in_the_words_is_evaluated():
    tree = ast.parse(inspect.getsource(sys.modules[read_cache.__module__]))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}


def test_the_command_lists_the_small_pipelines():
    assert list(MAKERS) == conformance.RANDOM


def test_what_a_library_lacks_is_told():
    with pytest.raises(UserError, match="diffusers has no NothingConfig"):
        bench("random:flux", "diffusers:NothingConfig()")
    with pytest.raises(UserError, match="FirstBlockCacheConfig: .*nonsense"):
        next(iter(_all(bench("random:flux", "diffusers:FirstBlockCacheConfig(nonsense=1)"))))
    with pytest.raises(UserError, match="No module named 'no_such_module'"):
        bench("random:flux", "no_such_module:on,off")


def _all(tested):
    from spectrum_bench.conformance.checks import check_all

    return check_all(tested)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", *BROKEN])
def test_the_broken_promise_is_told_and_no_other(broken, fault):
    import my_cache

    from spectrum_bench.conformance.checks import FAILED, check

    my_cache.FAULTS.update({fault} - {""})
    tested = bench("random:wan", "my_cache:enable,disable", never="my_cache:full,disable")
    names = ["skips", "a, b, a", "interrupted", "branches", "guidance of nothing", "gone afterwards", "never skips"]
    findings = {name: check(tested, name) for name in names}
    failed = {name for name, finding in findings.items() if finding.verdict == FAILED}
    assert failed == BROKEN.get(fault, set()), findings


BLOCKS = """
import torch

FAULTS = set()


def enable(pipe):
    for block in pipe.transformer.transformer_blocks:
        wrap(block)


def wrap(block):
    inner, state = block.forward, {"calls": 0}

    def forward(*args, **kwargs):
        state["calls"] += 1
        compiling = "changes when compiled" in FAULTS and torch.compiler.is_compiling()
        if "kept" not in state or state["calls"] % 2 and not compiling:
            state["kept"] = inner(*args, **kwargs)
        return state["kept"]

    block.forward = forward


def disable(pipe):
    for block in pipe.transformer.transformer_blocks:
        vars(block).pop("forward", None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "changes when compiled"])
def test_compiled_blocks_must_give_the_bits_of_others(tmp_path, monkeypatch, fault):
    from spectrum_bench.conformance.checks import check

    (tmp_path / "cache_of_blocks.py").write_text(BLOCKS.replace("set()", f"{{{fault!r}}}"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cache_of_blocks", raising=False)
    words = "random:flux", "cache_of_blocks:enable,disable"
    assert check(bench(*words), "compiled").words == "compile=true"  # it is not asked for
    tested = bench(*words, compile="true")
    found = check(tested, "compiled")
    assert found.verdict == ("FAILED" if fault else "ok"), found
    assert ("another cache" if fault else "same bits") in found.words
    assert not any("_compiled_call_impl" in vars(module) for module in tested.case.pipe.transformer.modules())


# The denoiser's second call of two gives the first one's output; its forward is replaced, as some libraries do.
WHOLE = """
def enable(pipe):
    inner, state = pipe.transformer.forward, {"calls": 0}

    def forward(*args, **kwargs):
        state["calls"] += 1
        if state["calls"] % 2:
            state["kept"] = inner(*args, **kwargs)
        return state["kept"]

    pipe.transformer.forward = forward


def disable(pipe):
    vars(pipe.transformer).pop("forward", None)
"""


def attributes_of(pipe):
    return set(vars(pipe)), [set(vars(module)) for module in pipe.transformer.modules()]


@pytest.mark.slow
def test_offloaded_weights_must_give_the_same_bits_in_each_call(tmp_path, monkeypatch):
    """Model offloading takes a replaced forward away at the end of a call, if it was there first."""
    from spectrum_bench.conformance.checks import check

    (tmp_path / "cache_of_parts.py").write_text(BLOCKS)
    (tmp_path / "cache_of_all.py").write_text(WHOLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert check(bench("random:flux", "cache_of_parts:enable,disable"), "offloaded").words == "offload=true"
    tested = bench("random:flux", "cache_of_parts:enable,disable", offload="true", steps="4")
    tested.uncached(tested.a)  # a call leaves marks of its own on a pipeline
    before = attributes_of(tested.case.pipe)
    found = check(tested, "offloaded")
    assert found.verdict == "ok", found
    assert found.words.startswith("the same bits with model offloading before the cache, "), found
    assert attributes_of(tested.case.pipe) == before
    found = check(bench("random:flux", "cache_of_all:enable,disable", offload="true", steps="4"), "offloaded")
    assert found.verdict == "FAILED", found
    assert "model offloading before the cache: its second call: the latents differ" in found.words, found
    assert "after the cache" not in found.words, found


@pytest.mark.slow
def test_one_line_a_check_json_and_an_exit_code(tmp_path, capsys, broken):
    words = ["pipeline=random:wan2-2-t2v", "cache=my_cache:enable,disable", "steps=6", f"json={tmp_path}/found.json"]
    conformance.main(words)
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "found.json").read_text())
    assert [line[8:28].strip() for line in lines] == [each["check"] for each in found["findings"]]
    told = {each["check"]: each for each in found["findings"]}
    assert told["two experts"]["verdict"] == "ok" and "transformer_2 from step" in told["two experts"]["words"]
    assert told["never skips"]["verdict"] == "-" and found["versions"]["torch"] == torch.__version__.split("+")[0]
    import my_cache

    my_cache.FAULTS.add("never skips")
    with pytest.raises(SystemExit) as end:
        conformance.main(words[:3])
    assert end.value.code == SOME_FAILED


def test_a_call_that_the_pipeline_itself_refuses_ends_there(capsys):
    with pytest.raises(SystemExit) as end:
        conformance.main(["pipeline=random:flux", f"cache={FBC}", "call={'nonsense': 1}"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == SOME_FAILED and len(lines) == 2 and "the plain pipeline refuses it" in lines[1]


def test_a_part_of_the_pipeline_switches_guidance():
    """HunyuanVideo-1.5 has no argument for it: without guidance a step has one call, and the part is as before."""
    from spectrum_bench.conformance.pipelines import Ask, open_case

    case = open_case("random:hunyuan1-5", {}, 2, 64, "float32", "cpu")
    before = case.pipe.guider.guidance_scale
    calls = {scale: len(case.call(Ask(steps=2, guidance=scale)).calls) for scale in (None, 1.0)}
    assert calls == {None: 4, 1.0: 2} and case.pipe.guider.guidance_scale == before == 6.0


REFUSING = """
def enable(pipe):
    raise ValueError("not for this one")


def half(pipe):
    pipe.transformer.forward = lambda *args, **kwargs: None
    raise ValueError("not for this one")


def disable(pipe):
    pass
"""


def test_a_refusal_may_leave_nothing(tmp_path, monkeypatch):
    from spectrum_bench.conformance.checks import check

    (tmp_path / "refusing_cache.py").write_text(REFUSING)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = check(bench("random:flux", "refusing_cache:enable,disable"), "attaches")
    assert (found.verdict, found.words) == ("-", "it refuses the pipeline: ValueError: not for this one")
    tested = bench("random:flux", "refusing_cache:half,disable")
    found = check(tested, "attaches")
    assert found.verdict == "FAILED" and "FluxTransformer2DModel.forward" in found.words, found
    assert "forward" not in vars(tested.case.pipe.transformer)


def test_a_cache_that_refuses_the_pipeline_ends_there(capsys):
    with pytest.raises(SystemExit) as end:
        conformance.main(["pipeline=random:sd3-5-medium", f"cache={FBC}"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == SOME_FAILED and len(lines) == 1 and "no enable_cache" in lines[0]


@pytest.mark.slow
def test_each_promise_is_a_test_of_pytest(broken, tmp_path):
    (tmp_path / "broken_cache.py").write_text(MODULE.replace("FAULTS = set()", "FAULTS = {'forgets nothing'}"))
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "spectrum_bench.commands.pytest_plugin",
        "-p",
        "no:cacheprovider",
        "-rA",
    ]
    line += ["--cache-under-test", "broken_cache:enable,disable", "--under-test", "steps=5"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment_with_package())
    failed = re.findall(r"^FAILED .*: ([\w, ]+?)(?: -.*)?$", ended.stdout, re.MULTILINE)
    assert ended.returncode == 1 and {"a, b, a", "interrupted"} <= set(failed), ended.stdout[-3000:]
    assert "skips" in ended.stdout and "gone afterwards" not in failed and "skipped" in ended.stdout


@pytest.mark.slow
def test_a_mask_of_cache_dit_is_left_out_when_it_may_never_skip():
    from spectrum_bench.conformance.checks import check

    mask = "cachedit:DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, steps_computation_mask=[1, 0, 1, 0, 1])"
    tested = bench("random:flux", mask)
    assert [check(tested, name).verdict for name in ("runs", "never skips")] == ["ok", "ok"]


def test_the_matrix_counts_failures_of_caches_whose_words_can_be_read():
    script = runpy.run_path(str(ROOT / "scripts/conformance.py"))
    for words in script["CACHES"].values():
        assert read_cache(words.format(0.5)).configs
    verdicts = {"a": "ok", "b": "FAILED", "c": "-", "d": "FAILED"}
    lines = [("SeaCache", pipeline, "skips", verdict, "") for pipeline, verdict in verdicts.items()]
    lines += [("SeaCache", "a", "branches", "ok", ""), ("DBCache", "a", "skips", "ok", "")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in script["table"](lines).splitlines()]
    told = {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}
    assert told["SeaCache"] == {"skips": "2 of 3", "branches": "."} and told["DBCache"]["branches"] == "-"
