"""A pipeline without weights: its networks are on the meta device, where tensors have shapes and no memory. What they
would compute and hold is counted without a GPU and without a download."""

import json
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from spectrum_bench.caching.session import denoisers
from spectrum_bench.caching.turns import takeovers
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.architectures import FOLDER, _build, architecture, random_pipeline
from spectrum_bench.sampling.controlnet import controlled, find_controlnet
from spectrum_bench.sampling.models import find_weights, index_of, parts, pipeline_class
from spectrum_bench.sampling.settings import ModelSettings
from spectrum_bench.schedules import ALONE, Starts

aten = torch.ops.aten
CPU = torch.device("cpu")
VALUED = {"img_mask"}  # arguments of denoisers whose values decide shapes


def meta_pipeline(model: ModelSettings) -> Any:
    """The pipeline of a model with its networks on the meta device, from the configurations beside its weights, or
    where there are none from configs/architectures. All else runs on the CPU as ever: tokens, latents and the
    scheduler's steps. It needs `on_meta` for each of its networks.

    Raises:
        UserError: there are neither weights nor an architecture of this name.
    """
    pipe = _without_weights(model)
    if model.controlnet is not None:
        folder, kind = find_controlnet(model.controlnet)
        pipe = controlled(pipe, _part(folder, ("diffusers", kind), model))
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **model.scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipeline = type(pipe)
    pipe.__class__ = type(pipeline.__name__, (pipeline,), {"_execution_device": CPU})  # which asks the networks
    return pipe


def on_meta(network: nn.Module, undo: ExitStack) -> None:
    """Let a network take tensors from the CPU, and give zeros of the right shapes back. Hooks that were there before
    see what it is really given."""

    def take(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if "input_ids" in kwargs:  # their number decides the shapes; a picture's patches would be placed by values
            kwargs = {name: value for name, value in kwargs.items() if name not in ("pixel_values", "image_grid_thw")}
        decide = {name: kwargs[name] for name in VALUED & kwargs.keys()}
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return args, kwargs | decide

    def give(module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: torch.zeros_like(tensor, device=CPU), output)

    undo.callback(network.register_forward_pre_hook(take, with_kwargs=True).remove)
    undo.callback(network.register_forward_hook(give, prepend=True).remove)
    encode: Any = getattr(network, "encode", None)
    if encode is not None:
        vars(network)["encode"] = _encode(encode)
        undo.callback(vars(network).pop, "encode")


def _encode(encode: Callable[..., Any]) -> Callable[..., Any]:
    """A VAE's `encode`, which is no call of the module, for pictures on the CPU."""

    def encoded(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = encode(x.to("meta"), *args, **kwargs)
        parameters = torch.zeros_like(out.latent_dist.parameters, device=CPU)
        return type(out)(latent_dist=type(out.latent_dist)(parameters))

    return encoded


def takeovers_of(model: ModelSettings, T: int) -> Starts:
    """The first step of each network of a model's T steps, without weights; of an unknown model as of one network."""
    try:
        folder = _folder(model)
    except UserError:
        return ALONE
    if "transformer_2" not in (parts(index_of(folder)) if folder else architecture(model.name)["parts"]):
        return ALONE
    pipe = meta_pipeline(model)
    return takeovers(pipe, denoisers(pipe), T)


def _folder(model: ModelSettings) -> Path | None:
    """Where the weights are; None if they are not here, and the architecture is known."""
    try:
        return None if model.init == "random" or model.repo is None else find_weights(model.repo, model.revision)
    except UserError:
        if not (FOLDER / f"{model.name}.json").is_file():
            raise
        return None


def _without_weights(model: ModelSettings) -> Any:
    folder = _folder(model)
    if folder is None:
        return random_pipeline(model.name, dtype=model.dtype, device="meta", vae_dtype=model.vae_dtype)
    index = index_of(folder)
    made = {part: _part(folder / part, index[part], model) for part in parts(index)}
    options = {key: value for key, value in index.items() if not key.startswith("_") and key not in made}
    absent = {key: None if isinstance(value, list) else value for key, value in options.items()}
    return pipeline_class(model, index)(**made, **absent)


def _part(folder: Path, of: Sequence[str], model: ModelSettings) -> Any:
    """A part of a pipeline: on the meta device, or as it is if it has no weights, as a tokenizer.

    Args:
        of: the library and the class.
    """
    (library, kind), path = of, folder / "config.json"
    if not path.is_file():
        return getattr(import_module(library), kind).from_pretrained(folder)
    config = json.loads(path.read_text(encoding="utf-8")) | {"_class_name": kind}
    dtype = model.vae_dtype if folder.name == "vae" and model.vae_dtype else model.dtype
    return _build(config, dtype=getattr(torch, dtype), device="meta")


def networks(pipe: Any) -> list[nn.Module]:
    """All parts of a pipeline that have weights."""
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def weights(pipe: Any) -> list[Tensor]:
    """The parameters and buffers of all parts."""
    return [tensor for network in networks(pipe) for tensor in (*network.parameters(), *network.buffers())]


class Counted(TorchDispatchMode):
    """Counts what runs on the meta device.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention so far, by torch's formulas (a
            multiply-add is two). Element-wise operations are not counted, as usual.
        held: bytes of the tensors that are alive, those of `pipe`'s parts left out.
        most: the most of `held` since it was set last.
        answer: what code gets that reads a number from a tensor, which has none.
    """

    def __init__(self, pipe: Any):
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops, self.held, self.most, self.answer = 0, 0, 0, 1.0
        self._storages = {tensor.untyped_storage()._cdata for tensor in weights(pipe)}
        self._fused = _Fused()

    def __enter__(self) -> "Counted":
        self._fused.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._fused.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return self.answer if args[0].is_floating_point() else 1
        if func is aten._to_copy.default and args[0].is_meta and kwargs.get("device") == CPU:
            dtype = kwargs.get("dtype") or args[0].dtype
            most = torch.finfo(dtype).max if dtype.is_floating_point else self.answer  # float16 ends at 65504
            return torch.full(args[0].shape, min(self.answer, most), dtype=dtype)
        if func is aten.index.Tensor and args[0].is_meta and getattr(args[1][0], "dtype", None) == torch.bool:
            return _chosen(args[0], args[1][0])
        out, flops = _outcome(func, args, kwargs)
        if func is aten.bitwise_not.default:
            out.negated = True
        self.flops += flops
        for tensor in [out] if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        self._storages.add(key)
        self.held += storage.nbytes()
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._let_go, key, storage.nbytes())

    def _let_go(self, key: int, nbytes: int) -> None:
        self._storages.discard(key)
        self.held -= nbytes


class _Like(NamedTuple):
    """All that a tensor on the meta device is."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Valued(Exception):
    """A tensor on another device, whose values may matter."""


# What operations gave of such arguments, and how many floating-point operations each was. torch finds most shapes in
# Python, which takes longer than a small network's own kernels, and the same blocks run in every step.
_OUTCOMES: dict[Hashable, tuple[Any, int]] = {}


def _outcome(func: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
    """What an operation gives, and how many floating-point operations it is."""
    key: Hashable = None
    if _makes_new(func):
        with suppress(_Valued):
            key = func, _like(args), _like(tuple(kwargs.items()))
    if key is not None and key in _OUTCOMES:
        out, flops = _OUTCOMES[key]
        return _new(out), flops
    out, formula = func(*args, **kwargs), flop_registry.get(func._overloadpacket)
    flops = 0 if formula is None else formula(*args, **kwargs, out_val=out)
    if key is not None and not _storages(out) & _storages(args):  # _unsafe_view does not say that it gives a view
        with suppress(_Valued):
            _OUTCOMES[key] = _like(out), flops
    return out, flops


def _storages(values: Any) -> set[int]:
    return {each.untyped_storage()._cdata for each in tree_leaves(values) if isinstance(each, Tensor)}


@cache
def _makes_new(func: Any) -> bool:
    """Whether an operation neither changes what it is given nor returns a view of it."""
    return all(each.alias_info is None for each in (*func._schema.arguments, *func._schema.returns))


def _like(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _Valued
        return _Like(value.shape, value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple([_like(each) for each in value])
    return type(value), value  # 1 and 1.0 give other dtypes


def _new(like: Any) -> Any:
    """A tensor, or several, of which `_like` tells this."""
    if isinstance(like, _Like):
        return aten.empty_strided.default(like.shape, like.stride, dtype=like.dtype, device="meta")
    if isinstance(like[0], type):
        return like[1]
    return tuple([_new(each) for each in like])


def _chosen(x: Tensor, mask: Tensor) -> Tensor:
    """The rows of a tensor that a mask chooses. The meta device does not know which: a mask is taken to choose all of
    them, and its negation none, so that both together are all."""
    rows = 0 if getattr(mask, "negated", False) else mask.numel()
    return x.new_empty((rows, *x.shape[mask.ndim :]))


class _Fused(TorchFunctionMode):
    """Attention as GPUs run it: without the matrix of all pairs of tokens, which the meta device would make."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            named = [kwargs[name] for name in ("query", "key", "value") if name in kwargs]
            query, key, value = list(args[:3]) + named
            if query.is_meta and query.shape[1] == key.shape[1]:
                return aten._scaled_dot_product_efficient_attention(query, key, value, None, False)[0]
        if func is torch.where and len(args) == 3 and getattr(args[1], "is_meta", False):
            args = (args[0].to("meta"), *args[1:])  # a mask of VALUED is on the CPU
        return func(*args, **kwargs)
