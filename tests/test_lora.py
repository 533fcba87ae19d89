"""LoRAs: what is refused before a model loads, what ids hold, and caching with one on."""

import pytest
import torch
from helpers import composed, denoiser, run, sample, settings
from safetensors.torch import load_file, save_file
from test_wrappers import ALGORITHMS

from spectrum_bench.commands import run as run_command
from spectrum_bench.errors import UserError
from spectrum_bench.sampling import lora as loras
from spectrum_bench.sampling.identity import identity
from spectrum_bench.sampling.models import identify, load_pipeline

RANK = 2


@pytest.fixture
def lora_file(random_pipe, tmp_path):
    """Makes a random LoRA of the queries of the random FLUX."""

    def make(name="style.safetensors", seed=0, prefix="transformer"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for path, module in denoiser(random_pipe).named_modules():
            if path.endswith("attn.to_q"):
                for part, shape in (("A", (RANK, module.in_features)), ("B", (module.out_features, RANK))):
                    tensors[f"{prefix}.{path}.lora_{part}.weight"] = torch.randn(shape, generator=generator)
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def installed(monkeypatch):
    """As if peft were there, for what needs none of it."""
    monkeypatch.setattr(loras, "find_spec", lambda name: name)


@pytest.mark.parametrize(
    "word,said",
    [
        ("model.lora=5", r"model.lora=5 is no list: write \[{file: style.safetensors, weight: 0.8}\]"),
        ("model.lora=[a]", "model.lora has a: write"),
        ("model.lora=[{weight: 1}]", "model.lora has .*: write"),
        ("model.lora=[{file: a, scale: 1}]", "model.lora has .*: write"),
        ("model.lora=[{file: 5}]", "model.lora: file=5 is no text"),
        ("model.lora=[{file: a.safetensors, weight: much}]", "model.lora: weight must be a number"),
        ("model.lora=[{file: a.safetensors, fuse: 1}]", "model.lora: fuse=1: write true or false"),
    ],
)
def test_nonsense_is_refused(word, said):
    with pytest.raises(UserError, match=said):
        settings(word)


def test_wrong_files_are_told_before_the_model(words, tmp_path, installed):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    save_file({"weight": torch.ones(1)}, tmp_path / "plain.safetensors")
    for given, said in {
        "file: style.bin": "is no .safetensors file: other formats can hold code",
        f"file: {tmp_path}/none.safetensors": "there is no file",
        f"file: {tmp_path}/broken.safetensors": "is damaged",
        f"file: {tmp_path}/plain.safetensors": "holds no LoRA",
        "repo: nobody_here/nothing": "nobody_here/nothing is not on this machine: hf download",
    }.items():
        with pytest.raises(UserError, match=said):
            run_command.main(composed(*words, f"model.lora=[{{{given}}}]"))


def test_without_peft_one_line_names_it(words, monkeypatch):
    monkeypatch.setattr(loras, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model.lora needs the package peft: pip install 'spectrum-bench\[lora\]'"):
        run_command.main(composed(*words, "model.lora=[{file: a.safetensors}]"))


def test_ids_hold_the_content_and_the_weight(weights, lora_file, installed):
    def of(*loras):
        given = f"[{','.join(f'{{file: {file}, weight: {weight}}}' for file, weight in loras)}]"
        return identify(settings(f"model.repo={weights}", f"model.lora={given}").model)

    plain, style, copy = identify(settings(f"model.repo={weights}").model), lora_file(), lora_file("copy.safetensors")
    assert plain == of() and plain != of((style, 0.5)) == of((copy, 0.5)) != of((style, 0.6))
    assert of((lora_file("other.safetensors", seed=1), 0.5)) != of((style, 0.5)) != of((style, "0.5, fuse: true"))
    assert "lora" not in identity(settings())["model"]
    given = settings("model.lora=[{file: a.safetensors, weight: 0.5}]")
    assert type(given).from_config(given.to_config()) == given


def test_a_fused_lora_is_in_the_weights_and_needs_no_peft(random_pipe, weights, lora_file, monkeypatch):
    monkeypatch.setattr(loras, "find_spec", lambda name: None)
    file = lora_file()
    given = settings(f"model.repo={weights}", f"model.lora=[{{file: {file}, weight: 0.8, fuse: true}}]").model
    plain, factors = denoiser(random_pipe).state_dict(), load_file(file)
    fused, changed = denoiser(load_pipeline(given, "cpu")).state_dict(), set()
    for name, weight in fused.items():
        a, b = (factors.get(f"transformer.{name.removesuffix('weight')}lora_{x}.weight") for x in "AB")
        expected = plain[name] if a is None else plain[name] + 0.8 * torch.einsum("or,ri->oi", b, a)
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)
        changed |= {name} if not torch.equal(weight, plain[name]) else set()
    assert {f"{name.removesuffix('.weight')}" for name in changed} == {
        name.removeprefix("transformer.").removesuffix(".lora_A.weight") for name in factors if "lora_A" in name
    }


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda t: t | {"transformer.x.alpha": torch.ones(1)},
            "has the tensor transformer.x.alpha, which fuse does not",
        ),
        (lambda t: {f"unet.{k}": v for k, v in t.items()}, "does not fit FluxPipeline at unet"),
        (lambda t: {k.replace("to_q", "to_x"): v for k, v in t.items()}, "does not fit FluxPipeline at .*to_x"),
        (lambda t: {k: v[:, :1].clone() if "_A" in k else v for k, v in t.items()}, "is to be added to"),
        (lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, "does not fit FluxPipeline at"),
    ],
)
def test_what_cannot_be_fused_is_told(random_pipe, lora_file, tmp_path, change, said):
    save_file(change(load_file(lora_file())), tmp_path / "other.safetensors")
    before = {name: weight.clone() for name, weight in denoiser(random_pipe).state_dict().items()}
    with pytest.raises(UserError, match=said) as error:
        loras.fuse(random_pipe, tmp_path / "other.safetensors", 1.0)
    assert "\n" not in str(error.value)
    assert all(torch.equal(weight, before[name]) for name, weight in denoiser(random_pipe).state_dict().items())


def test_a_scale_of_its_own_or_quantized_weights_cannot_be_fused(random_pipe, lora_file, tmp_path):
    save_file(load_file(lora_file()), tmp_path / "scaled.safetensors", {"lora_adapter_metadata": "{}"})
    with pytest.raises(UserError, match="has a scale of its own, which fuse does not read: leave fuse out"):
        loras.fuse(random_pipe, tmp_path / "scaled.safetensors", 1.0)
    with pytest.raises(UserError, match="fuse adds to plain weights: leave it out, or model.quantization"):
        settings("model.lora=[{file: a.safetensors, fuse: true}]", "model.quantization=int8")


@pytest.mark.usefixtures("no_gradients")
def test_caching_with_a_lora(weights, lora_file):
    pytest.importorskip("peft")
    file = lora_file()

    def pipe(*more):
        return load_pipeline(settings(f"model.repo={weights}", *more).model, "cpu")

    plain, none, with_lora = (
        pipe(*([f"model.lora=[{{file: {file}, weight: {weight}}}]"] if weight is not None else []))
        for weight in (None, 0.0, 0.8)
    )
    target = sample(with_lora, "flux")
    assert torch.equal(sample(none, "flux"), sample(plain, "flux"))
    assert not torch.equal(target, sample(plain, "flux"))
    for name in ("last_block", "output_residual", "modules", "tokens", "speca"):
        site, schedule, forecaster = ALGORITHMS[name]
        run(with_lora, "flux", site, schedule, forecaster)
        assert torch.equal(sample(with_lora, "flux"), target), name
    site, _, forecaster = ALGORITHMS["last_block"]
    from spectrum_bench import schedules

    assert torch.equal(run(with_lora, "flux", site, schedules.full, forecaster)[0], target)
    with pytest.raises(UserError, match="is for a part of FluxPipeline|does not fit FluxPipeline"):
        pipe(f"model.lora=[{{file: {lora_file('strange.safetensors', prefix='unet')}}}]")
