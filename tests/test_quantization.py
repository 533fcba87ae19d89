"""Quantized weights: what is refused before a model loads, what ids hold, and caching on them."""

from dataclasses import replace

import pytest
import torch
from helpers import MASK, composed, denoiser, run, sample, settings
from safetensors.torch import save_file
from test_wrappers import ALGORITHMS, attributes, differing
from torch import nn

from spectrum_bench import schedules
from spectrum_bench.commands import run as run_command
from spectrum_bench.errors import UserError
from spectrum_bench.sampling import quantizing
from spectrum_bench.sampling.identity import identity
from spectrum_bench.sampling.models import identify, load_pipeline
from spectrum_bench.sampling.runtime import OFFLOADS

FILE = "model.gguf={transformer: a.gguf}"


@pytest.fixture
def installed(monkeypatch):
    """As if all packages were there, for what needs none of them."""
    monkeypatch.setattr(quantizing, "find_spec", lambda name: name)


@pytest.mark.parametrize(
    "given,said",
    [
        (["model.quantization=int4"], "model.quantization=int4 is none of none, int8, fp8, nf4, gguf"),
        (["model.quantization=gguf"], "model.quantization=gguf needs the quantized file: model.gguf={"),
        (["model.quantization=int8", FILE], "model.gguf is read with model.quantization=gguf, not int8"),
        (["model.quantization=gguf", "model.gguf={vae: a.gguf}"], "model.gguf has vae, which is none of transformer"),
        (["model.quantization=gguf", "model.gguf=[a]"], "model.gguf=.* names no files: write model.gguf={"),
        (["model.quantization=int8", "model.offload=sequential"], "model.offload=sequential cannot move .*: use group"),
        (["model.quantization=fp8", "model.init=random"], "model.quantization=fp8 is for weights of files"),
    ],
)
def test_nonsense_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        settings(*given)


@pytest.mark.parametrize("way,package", [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_package_is_named_before_the_model(words, way, package, monkeypatch):
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    said = rf"model.quantization={way} needs the package {package}: pip install -U 'spectrum-bench\[quant\]'"
    with pytest.raises(UserError, match=said):
        run_command.main(composed(*words, f"model.quantization={way}"))


def test_an_old_package_is_told(installed, monkeypatch):
    def old(dtype):
        raise ValueError("TorchAoConfig requires torchao >= 0.15.0.")

    monkeypatch.setitem(quantizing.QUANTIZATIONS, "int8", quantizing.Quantization("torchao", old, 1))
    with pytest.raises(UserError, match="model.quantization=int8: TorchAoConfig requires .*: pip install -U"):
        quantizing.check_quantization("int8", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_without_a_gpu_one_line_comes_before_the_model(words, installed):
    with pytest.raises(UserError, match="model.quantization=nf4 needs a GPU, and this run has none"):
        run_command.main(composed(*words, "model.quantization=nf4"))


def test_wrong_files_are_told_before_the_model(words, tmp_path, installed):
    (tmp_path / "a.gguf").write_bytes(b"PK\3\4")
    for file, said in {f"{tmp_path}/none.gguf": "there is no file", f"{tmp_path}/a.gguf": "is no .gguf file"}.items():
        with pytest.raises(UserError, match=said):
            run_command.main(composed(*words, "model.quantization=gguf", f"model.gguf={{transformer: {file}}}"))


def test_ids_know_the_way_and_the_file(weights, tmp_path):
    plain, given = settings(f"model.repo={weights}"), settings("model.quantization=gguf", FILE)

    def of(content, name="a.gguf"):
        (tmp_path / name).write_bytes(content)
        return identify(replace(plain.model, quantization="gguf", gguf={"transformer": str(tmp_path / name)}))

    assert identify(plain.model) != of(b"GGUF1") == of(b"GGUF1", "b.gguf") != of(b"GGUF2")
    ids = [identity(replace(plain, model=replace(plain.model, quantization=way))) for way in ("none", "int8", "fp8")]
    assert "quantization" not in ids[0]["model"] and ids[0] != ids[1] != ids[2] != ids[0]
    assert type(given).from_config(given.to_config()) == given
    assert "gguf" not in identity(given)["model"]


def caches_alike(pipe, plain):
    """Whether a quantized pipeline runs, differs from the plain one, and is left by every kind of site as it was."""
    target = sample(pipe, "flux")
    assert not torch.equal(target, sample(plain, "flux")) and torch.isfinite(target).all()
    for name in ("last_block", "output_residual", "modules", "tokens"):
        site, schedule, forecaster = ALGORITHMS[name]
        before = attributes(denoiser(pipe))
        assert not torch.equal(run(pipe, "flux", site, schedule, forecaster)[0], target), name
        if schedule is MASK:
            assert torch.equal(run(pipe, "flux", site, schedules.full, forecaster)[0], target), name
        assert not differing(before, attributes(denoiser(pipe))), name
    assert torch.equal(sample(pipe, "flux"), target)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["int8", "fp8"])
@pytest.mark.usefixtures("no_gradients")
def test_caching_on_eight_bits(weights, random_pipe, way):
    pytest.importorskip("torchao", reason="no torchao: pip install 'spectrum-bench[quant]'")
    pipe = load(weights, way)
    linear = [module for module in denoiser(pipe).modules() if isinstance(module, nn.Linear)]
    assert all(
        type(module.weight.data).__name__ == {"int8": "Int8Tensor", "fp8": "Float8Tensor"}[way] for module in linear
    )
    assert {type(parameter) for parameter in pipe.text_encoder.parameters()} == {nn.Parameter}
    caches_alike(pipe, random_pipe)


@pytest.mark.slow
@pytest.mark.usefixtures("no_gradients")
def test_caching_on_four_bits(weights, random_pipe, monkeypatch):
    """Without a GPU: bitsandbytes computes on a CPU too, and diffusers alone refuses one."""
    pytest.importorskip("bitsandbytes", reason="no bitsandbytes: pip install 'spectrum-bench[quant]'")
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer

    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda *_, **__: None)
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "update_device_map", lambda *_: {"": "cpu"})
    pipe = load(weights, "nf4")
    linear = [module for module in denoiser(pipe).modules() if isinstance(module, nn.Linear)]
    assert {(type(module.weight).__name__, module.weight.quant_type) for module in linear} == {("Params4bit", "nf4")}
    caches_alike(pipe, random_pipe)


@pytest.fixture(scope="module")
def gguf_file(random_pipe, tmp_path_factory):
    """The random FLUX in 8 bits."""
    gguf = pytest.importorskip("gguf", reason="no gguf: pip install 'spectrum-bench[quant]'")
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    kind, file = gguf.GGMLQuantizationType.Q8_0, gguf.GGUFWriter(path, "flux")
    for name, tensor in denoiser(random_pipe).state_dict().items():
        if name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            file.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            file.add_tensor(name, tensor.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def load(weights, way, gguf_file=None, *more, part="transformer"):
    files = [f"model.gguf={{{part}: {gguf_file}}}"] if gguf_file else []
    return load_pipeline(settings(f"model.repo={weights}", f"model.quantization={way}", *files, *more).model, "cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("no_gradients")
def test_caching_on_a_gguf(weights, random_pipe, gguf_file):
    with pytest.raises(UserError, match="model.gguf names unet, and .* has transformer: name a file for each"):
        load(weights, "gguf", gguf_file, part="unet")
    caches_alike(load(weights, "gguf", gguf_file), random_pipe)


@pytest.mark.slow
@pytest.mark.parametrize("way,wrapped", [("int8", "model"), ("int8", "group"), ("gguf", "group"), ("fp8", "compile")])
@pytest.mark.usefixtures("no_gradients")
def test_caching_on_few_bits_under_another_wrapper(weights, request, way, wrapped):
    """Offloaded or compiled, a cached sample is that of the quantized pipeline alone."""
    pytest.importorskip("torchao", reason="no torchao: pip install 'spectrum-bench[quant]'")
    file = request.getfixturevalue("gguf_file") if way == "gguf" else None
    plain, pipe = load(weights, way, file), load(weights, way, file)
    if wrapped == "compile":
        denoiser(pipe).compile_repeated_blocks(backend="eager")
    else:
        OFFLOADS[wrapped](pipe, "cpu")
    site, _, forecaster = ALGORITHMS["last_block"]
    for schedule in (MASK, schedules.full):
        expected = run(plain, "flux", site, schedule, forecaster)[0]
        assert torch.equal(run(pipe, "flux", site, schedule, forecaster)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["int8", "fp8", "gguf"])
@pytest.mark.usefixtures("no_gradients")
def test_caching_with_a_lora_on_few_bits(weights, random_pipe, request, tmp_path, way):
    """What a LoRA adds stands beside the quantized weights: with a weight of 0 it is nothing."""
    pytest.importorskip("torchao", reason="no torchao: pip install 'spectrum-bench[quant]'")
    pytest.importorskip("peft", reason="no peft: pip install 'spectrum-bench[lora]'")
    generator, tensors, path = torch.Generator().manual_seed(0), {}, tmp_path / "style.safetensors"
    for name, module in denoiser(random_pipe).named_modules():
        if name.endswith("attn.to_q"):
            for part, shape in (("A", (2, module.in_features)), ("B", (module.out_features, 2))):
                tensors[f"transformer.{name}.lora_{part}.weight"] = torch.randn(shape, generator=generator)
    save_file(tensors, path)
    file = request.getfixturevalue("gguf_file") if way == "gguf" else None
    plain, none, pipe = (
        load(weights, way, file, *([f"model.lora=[{{file: {path}, weight: {weight}}}]"] if weight is not None else []))
        for weight in (None, 0.0, 0.8)
    )
    assert torch.equal(sample(none, "flux"), sample(plain, "flux"))
    caches_alike(pipe, plain)
