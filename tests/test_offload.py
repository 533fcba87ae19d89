"""Offloaded weights: what is cached is the same, and nothing stays behind on a pipeline."""

import fabricate
import pytest
import torch
import yaml
from helpers import composed, denoiser, recipe, run, sample, settings
from test_wrappers import ALGORITHMS, attributes, differing

from spectrum_bench.commands import run as run_command
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.identity import identity
from spectrum_bench.sampling.on_card import weights_on_card
from spectrum_bench.sampling.runtime import OFFLOADS
from spectrum_bench.scoring.experiments import check_reference, read_experiment

OWN = [name for name in ALGORITHMS if name not in ("diffusers", "cache-dit")]
PROMPTS = fabricate.captions(4)


@pytest.fixture
def make_pipe():
    """Makes a random pipeline that nobody else gets."""
    from training import parts

    from spectrum_bench.sampling.small import no_identity

    def make():
        torch.manual_seed(0)
        pipe = parts.build(recipe("flux"))
        no_identity(denoiser(pipe))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def shapes_of_forward(pipe):
    """How `forward` of each module is wrapped: the functions inside one another."""
    names = {}
    for name, module in pipe.transformer.named_modules():
        inner = vars(module).get("_old_forward")
        names[name] = (
            "forward" in vars(module),
            getattr(inner, "__qualname__", inner),
            type(vars(module).get("_hf_hook")),
        )
    return names


@pytest.mark.parametrize("way", ["model", pytest.param("group", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("no_gradients")
def test_caching_is_the_same_and_leaves_nothing(make_pipe, way):
    plain_pipe, pipe = make_pipe(), make_pipe()
    plain = sample(plain_pipe, "flux")
    OFFLOADS[way](pipe, "cpu")  # the same hooks as with a GPU
    assert torch.equal(sample(pipe, "flux"), plain)
    for name in OWN if way == "model" else ["last_block", "modules"]:
        before, wrapped = attributes(pipe.transformer), shapes_of_forward(pipe)
        cached, _ = run(pipe, "flux", *ALGORITHMS[name])
        assert torch.equal(cached, run(plain_pipe, "flux", *ALGORITHMS[name])[0]), name
        assert shapes_of_forward(pipe) == wrapped, name
        renewed = {("", "forward"), ("", "_hf_hook")} if way == "model" else set()  # by the pipeline itself
        assert set(differing(before, attributes(pipe.transformer))) == renewed, name
    if way == "model":
        assert "maybe_free_model_hooks" not in vars(pipe)
        pipe.remove_all_hooks()
        assert all(m.forward == type(m).forward.__get__(m) for m in pipe.transformer.modules())
    assert torch.equal(sample(pipe, "flux"), plain)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
@pytest.mark.parametrize("way", ["model", "group", "sequential"])
def test_without_a_gpu_one_line_comes_before_the_model(words, way):
    said = f"model.offload={way} moves weights to a GPU, and this run has none: leave it out"
    with pytest.raises(UserError, match=said):
        run_command.main(composed(*words, f"model.offload={way}"))


@pytest.mark.usefixtures("no_gradients")
def test_the_bytes_on_the_card_are_those_that_hooks_move(make_pipe, monkeypatch):
    from diffusers.hooks.group_offloading import ModuleGroup

    def nbytes(tensors):
        return sum(tensor.nbytes for tensor in tensors)

    pipe, on_card, most = make_pipe(), {}, 0
    own = {id(tensor) for tensor in pipe.transformer.parameters()}
    onload, offload = ModuleGroup.onload_, ModuleGroup.offload_

    def moves(group):
        nonlocal most
        tensors = [*group.parameters, *group.buffers, *(p for m in group.modules for p in m.parameters())]
        on_card[id(group)] = nbytes({id(tensor): tensor for tensor in tensors if id(tensor) in own}.values())
        most = max(most, sum(on_card.values()))
        onload(group)

    def moves_back(group):
        on_card.pop(id(group), None)
        offload(group)

    expected = {way: weights_on_card(pipe, settings(f"model.offload={way}").model) for way in OFFLOADS}
    whole = nbytes(pipe.transformer.parameters())
    others = [nbytes(part.parameters()) for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2)]
    assert expected["model"] == (whole, max(others))
    assert expected["none"] == (whole + sum(others) + nbytes(pipe.text_encoder.buffers()), 0)
    layers = [nbytes(m.parameters(recurse=False)) for m in pipe.transformer.modules()]
    assert expected["sequential"][0] == max(layers)
    OFFLOADS["group"](pipe, "cpu")
    monkeypatch.setattr(ModuleGroup, "onload_", moves)
    monkeypatch.setattr(ModuleGroup, "offload_", moves_back)
    sample(pipe, "flux")
    assert expected["group"][0] == most < whole


def test_quantized_weights_count_so(make_pipe, tmp_path):
    pipe = make_pipe()
    plain, small = (weights_on_card(pipe, settings(*word).model)[0] for word in ([], ["model.quantization=int8"]))
    linear = [m for m in pipe.transformer.modules() if isinstance(m, torch.nn.Linear)]
    assert plain - small == 3 * sum(m.weight.numel() for m in linear)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(996))
    word = f"model.gguf={{transformer: {tmp_path}/a.gguf}}"
    file = weights_on_card(pipe, settings("model.quantization=gguf", word, "model.offload=model").model)[0]
    assert file == pytest.approx(1000, abs=1)


def test_a_wrong_word_is_refused():
    with pytest.raises(UserError, match="model.offload=disk is none of none, model, group, sequential"):
        settings("model.offload=disk")
    with pytest.raises(UserError, match="model.vae_slicing=1 is neither true nor false"):
        settings("model.vae_slicing=1")


def test_ids_know_what_differs():
    plain = identity(settings())
    assert identity(settings("model.offload=none", "model.vae_slicing=false")) == plain
    assert not {"offload", "vae_slicing"} & plain["model"].keys()
    assert identity(settings("model.offload=group")) != plain != identity(settings("model.vae_slicing=true"))


def made(folder, algo, nfe, offloaded=None):
    path = fabricate.experiment(folder, PROMPTS, fabricate.pictures(PROMPTS), algo, nfe) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"] |= {"offload": offloaded} if offloaded else {}
    path.write_text(yaml.safe_dump(config))
    return read_experiment(folder)


def test_a_reference_must_be_offloaded_as_its_rows_are(tmp_path):
    reference = made(tmp_path / "nocache", "nocache", 50)
    offloaded = made(tmp_path / "offloaded", "nocache", 50, "model")
    row = made(tmp_path / "fora", "fora", 14, "model")
    check_reference(offloaded, reference)  # a noise floor
    check_reference(row, offloaded)
    with pytest.raises(
        UserError, match="fora was made with runtime {'offload': 'model'} and .*nocache with as it comes"
    ):
        check_reference(row, reference)


def test_the_vae_slices_and_tiles(weights):
    from spectrum_bench.sampling.models import load_pipeline

    model = settings(f"model.repo={weights}", "model.vae_slicing=true", "model.vae_tiling=true").model
    vae = load_pipeline(model, "cpu").vae
    assert vae.use_slicing and vae.use_tiling
