"""Every YAML composes and instantiates; the keys of the command line are a promise."""

import pkgutil
import re
from contextlib import nullcontext
from pathlib import Path

import hydra
import pytest
from helpers import composed, node, settings
from omegaconf import OmegaConf

from spectrum_bench import schedules
from spectrum_bench.commands.compose import build, check_upstream_keys, instantiate, settings_of
from spectrum_bench.commands.entry import paths
from spectrum_bench.errors import UserError
from spectrum_bench.paths import CONFIGS
from spectrum_bench.sampling.identity import labels
from spectrum_bench.signals import FirstBlock, Front

GROUPS = {g: sorted(p.stem for p in Path(CONFIGS, g).glob("*.yaml")) for g in ("model", "algo", "schedule", "site")}
HINDCAST = ["schedule.steps=[0,7]", "schedule.T_fitted=50", "site.steps=[0,7]", "site.coefficients=[[1,0],[1,0,0]]"]
HYCA = ["algo.forecaster.solvers=[reuse,taylor1]", "algo.forecaster.channels=[0,1,1]"]
CURVE = [0] * 49
L2P = [f"algo.forecaster.outputs={[[0] * s + [1] for s in range(50)]}"]
SMOOTH = [f"schedule.errors=[[{CURVE}]]", "site.kinds=[attn]"]
SENCACHE = ["schedule.timesteps=[1,0]", "schedule.latent=[1,1]", "schedule.time=[1,1]"]
UPSTREAM = [
    "model",
    "algo",
    "algo.w",
    "algo.lam",
    "algo.m",
    "window_size",
    "flex_window",
    "warmup_steps",
    "num_inference_steps",
    "seed",
    "exp_name",
    "ngpu",
    "total_prompt_num",
    "output_base_path",
    "prompt_file",
    "model.width",
    "model.height",
]


def check_parts(method, algorithm):
    """Each part is the function with the constants, or the object of the class, that the configuration names."""
    for part in ("schedule", "forecaster", "site"):
        given, made = getattr(method, part), getattr(algorithm, part)
        if given is not None:
            target = pkgutil.resolve_name(given.target)
            assert target in (getattr(made, "func", None), getattr(made, "method", None), type(made)), part
            for key, value in getattr(made, "keywords", {}).items():
                assert value == given.constants[key], (part, key)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["model", "schedule", "site"])
def test_the_choice_of_a_name_changes_its_node_alone(group):
    """So that tests may put nodes together: composing each pair would take minutes."""

    def others(cfg):
        return {key: cfg._get_node(key) for key in cfg if key != group}

    default = others(composed())
    for name in GROUPS[group]:
        extra = {"of"} if name in ("frozen", "consensus") else set()
        chosen = others(composed(f"{group}={name}"))
        assert chosen.keys() - extra == default.keys(), name
        assert all(chosen[key] == default[key] for key in default), name


@pytest.mark.slow
@pytest.mark.parametrize("algo", GROUPS["algo"])
def test_every_model_and_algorithm_builds(algo):
    """Every algorithm with a model of each kind, every model with one algorithm."""
    names = GROUPS["model"] if algo == "spectrum" else ("flux", "wan14b", "sdxl")
    models = {name: node("model", name) for name in names}
    words = {
        "teacache": ["schedule.polynomial=[1,0]"],
        "magcache": ["schedule.ratios=[1,1]"],
        "sencache": SENCACHE,
        "hyca": HYCA,
        "hindcast": HINDCAST,
        "smoothcache": SMOOTH,
        "l2p": L2P,
        "diffusers_magcache": ["site.arguments.mag_ratios=[1,1]"],
    }.get(algo, [])
    cfg = composed(f"algo={algo}", *words)
    for model in models:
        cfg.model = models[model]
        given = settings_of(cfg)
        algorithm = build(given)
        assert algorithm.name == algo == labels(given)["algo"] and given.model.name == models[model].name, model
        check_parts(given.method, algorithm)
        mask = schedules.plan(algorithm.schedule, given.num_inference_steps)
        assert mask is None or mask.all() == (algo in ("nocache", "steps")), model


@pytest.mark.slow
@pytest.mark.parametrize("schedule", GROUPS["schedule"])
@pytest.mark.parametrize("algo", ["reuse", "spectrum"])
def test_any_schedule_with_any_forecaster_and_site(algo, schedule):
    # Peers decide themselves and are refused with every other schedule, of which one is tried.
    names = [name for name in GROUPS["site"] if not is_peer(name) or schedule in ("observed", "uniform")]
    sites = {name: node("site", name) for name in names}
    words = {
        "mask": ["schedule.steps=[0,1,9]"],
        "frozen": ["schedule.steps=[0,1,9]", "of=nowhere"],
        "consensus": ["schedule.steps=[0,1,9]", "of=nowhere"],
        "searched": ["schedule.steps=[0,1,9]", "schedule.T_searched=50", "schedule.passes=3"],
        "magcache": ["schedule.ratios=[1,1]"],
        "smoothcache": [f"schedule.errors=[[{CURVE}]]"],
        "sencache": SENCACHE,
    }.get(schedule, [])
    cfg = composed(f"algo={algo}", f"schedule={schedule}", *words)
    for site in sites:
        cfg.site = sites[site]
        if site == "diffusers_magcache":
            cfg.site.arguments.mag_ratios = [1, 1]
        check_triple(cfg, algo, schedule, site)


def is_peer(site):
    return site.startswith(("diffusers_", "cachedit_"))


def check_triple(cfg, algo, schedule, site):
    """It is built as it is named, or refused for its reason."""
    peer = is_peer(site)
    if peer or schedule == "observed":
        alone = peer and schedule == "observed" and algo == "reuse"
        with nullcontext() if alone else pytest.raises(UserError, match="alone|observes the f"):
            build(settings_of(cfg))
        return
    given = settings_of(cfg)
    gate_or_mask, where = (instantiate(part) for part in (given.method.schedule, given.method.site))
    places = {signal.place for signal in getattr(gate_or_mask, "observes", ())}
    if Front in places and not where.front or FirstBlock in places and not where.runs_blocks:
        refusal = "observes the f"
    elif site == "kinds" and (schedule != "smoothcache" or algo != "reuse"):
        refusal = "use algo=smoothcache"
    elif site == "fitted_solver" and schedule != "fitted":
        refusal = "use algo=hindcast"
    elif site in ("tokens", "alternating", "mean_velocity") and algo != "reuse":
        refusal = "token-wise caching reuses|a forecast of its own"
    else:
        check_parts(given.method, build(given))
        return
    with pytest.raises(UserError, match=refusal):
        build(given)


@pytest.mark.parametrize(
    "words,computed",
    [
        (["algo=spectrum"], [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]),
        (["algo=spectrum", "flex_window=3.0"], [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]),
        (["algo=fora"], list(range(0, 50, 4))),
        (["algo=taylorseer"], [0, 1, 2, 3, *range(4, 50, 4)]),
        (["algo=taylorseer", "schedule.interval=6", "warmup_steps=3"], [0, 1, 2, *range(8, 50, 6)]),
        (["algo=steps"], list(range(25))),
        (["algo=fora", "schedule=mask", "schedule.steps=[0,7]"], [0, 7]),
    ],
    ids=str,
)
def test_the_command_line_reaches_the_schedule(compose, words, computed):
    cfg = settings(*words)
    assert schedules.plan(build(cfg).schedule, cfg.num_inference_steps).nonzero()[0].tolist() == computed


def test_upstream_keys_exist(compose):
    have = set(paths(OmegaConf.to_container(compose("algo=spectrum"), resolve=False)))
    assert set(UPSTREAM) <= have


def test_top_level_keys_are_frozen(compose):
    """Adding, renaming or dropping one changes what users type: do it on purpose, and say so in the README."""
    assert sorted(compose()) == sorted(
        [
            "prompt_file",
            "prompt_column",
            "total_prompt_num",
            "samples_per_prompt",
            "seed",
            "num_inference_steps",
            "window_size",
            "flex_window",
            "warmup_steps",
            "output_base_path",
            "exp_name",
            "ngpu",
            "engine",
            "runtime",
            "keep_latents",
            "retry_failed",
            "plugins",
            "device",
            "threads",
            "warmup_samples",
            "model",
            "schedule",
            "site",
            "algo",
        ]
    )


@pytest.mark.parametrize(
    "words,said",
    [
        (["algo=fora", "window_size=3"], "window_size is not read by algo=fora"),
        (["algo=nocache", "flex_window=1"], "flex_window is not read"),
        (["algo=spectrum", "schedule=full", "warmup_steps=3"], "warmup_steps is not read"),
    ],
    ids=str,
)
def test_a_key_that_nobody_reads_is_refused(compose, words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        check_upstream_keys(compose(*words))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words,said",
    [
        (["warmup_steps=-1"], "warmup must be a whole number of at least 1"),
        (["algo=nocache", "schedule=uniform"], "schedule=full is the only one"),
        (["algo=nocache", "site=modules"], "belong together"),
        (["schedule=mask", "schedule.steps=[1,2]"], "step 0 must be computed"),
        (["schedule=mask", "schedule.steps=[0,99]"], "from 0 to 49"),
        (["algo=teacache", "model=sdxl"], "no constants for teacache"),
        (["algo=teacache", "schedule.threshold=-1"], "threshold must be a number"),
        (["algo.w=2"], "algo.w"),
        (["algo.lam=0"], "algo.lam"),
        (["algo.m=2.5"], "algo.m"),
        (["algo.lam=abc"], "algo.lam"),
        (["algo.w=x"], "algo.w"),
        (["flex_window=abc"], "flex must be a number"),
        (["flex_window=inf"], "flex must be a number"),
        (["warmup_steps=2.5"], "warmup must be a whole number"),
        (["schedule=mask", "schedule.steps=5"], "list of whole numbers"),
        (["+schedule.nonsense=1"], "nonsense"),
    ],
    ids=str,
)
def test_senseless_triples_are_refused_in_one_line(compose, words, said):
    with pytest.raises(UserError) as error:
        build(settings(*words))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model,words,constants",
    [
        ("flux", ["algo=dicache"], {"last": 1, "beyond": True}),
        ("hunyuan", ["algo=dicache"], {"last": 0, "beyond": False}),
        ("wan14b", ["algo=dicache"], {"last": 0, "beyond": False}),
        ("flux", ["algo=speca"], {"threshold": 7, "decay": 0.3, "shortest": 2, "longest": 8, "first": 3}),
        ("hunyuan", ["algo=speca"], {"threshold": 1, "decay": 0.1, "shortest": 3, "longest": 12, "first": 1}),
        ("flux", ["algo=magcache"], {"down": False, "retention": 0.1, "always": [11]}),
        ("hunyuan", ["algo=magcache"], {"down": True, "retention": 0.2}),
        ("wan1-3b", ["algo=magcache"], {"down": False, "retention": 0.2}),
    ],
)
def test_a_method_has_its_authors_constants_for_each_model(model, words, constants):
    """Which differ between the models that they published it for."""
    given = settings(f"model={model}", *words).method
    assert constants.items() <= given.schedule.constants.items()
    if words == ["algo=magcache"]:
        assert len(given.schedule.constants["ratios"]) == (28 if model == "flux" else 50)


def test_duca_for_hunyuan_video_is_what_its_fidelity_names():
    """The settings with which it equals Shenyi-Z/TaylorSeer@288776d's mode of that name."""
    words = ["+site.tokens.single=0", "+site.tokens.age_weight=0", "schedule.interval=5", "algo.warmup=1"]
    assert " ".join(words) in (Path(CONFIGS) / "algo/duca.yaml").read_text(encoding="utf-8")
    algorithm = build(settings("model=hunyuan", "algo=duca", *words))
    assert (algorithm.site.tokens.single, algorithm.site.tokens.age_weight, algorithm.site.tokens.interval) == (0, 0, 5)
    assert schedules.plan(algorithm.schedule, 50).nonzero()[0].tolist() == list(range(0, 50, 5))


def test_forecasters_have_their_authors_constants_for_each_model():
    assert settings("model=hunyuan", "algo=speca").method.forecaster.constants["order"] == 1
    assert settings("model=flux", "algo=speca").method.forecaster.constants["order"] == 2
    assert settings("model=wan14b", "algo=dicache").method.forecaster.constants["most"] == 2
    assert settings("model=flux", "algo=dicache").method.forecaster.constants["most"] == 1.5
    ratios = settings("model=hunyuan", "algo=magcache", "schedule.ratios=${calibrated:magcache,ratios_720p}")
    assert ratios.method.schedule.constants["ratios"][1] == 1.0754


def test_video_models_are_decoded_as_spectrums_code_does():
    hunyuan, wan, small = (settings(f"model={name}").model for name in ("hunyuan", "wan14b", "wan1-3b"))
    assert (hunyuan.fps, hunyuan.vae_dtype, hunyuan.vae_tiling) == (24, "bfloat16", True)
    assert wan.vae_tiling and small.vae_tiling


@pytest.mark.parametrize("config", ["base", "video", "edit_image", "image_to_video"])
def test_help_lists_the_groups_that_can_be_chosen(config):
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        text = hydra.compose(config, return_hydra_config=True).hydra.help.template
    listed = re.findall(r"^(\w+): ", text[text.index("== Choices") : text.index("== Configuration")], re.MULTILINE)
    assert listed == ["algo", "model", "schedule", "site", "history", "correct"]
    assert "published/... (" in text and "taylorseer" in text
    assert not [path for path in Path(CONFIGS).glob("*.yaml") if "$APP_CONFIG_GROUPS" in path.read_text()]
