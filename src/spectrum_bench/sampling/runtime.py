"""How a network is run: batches, compilation, attention, offloading. Settings, and what they ask of a machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spectrum_bench.checks import boolean, brief, one_of, whole
from spectrum_bench.errors import BadValue, UserError

COMPILED: dict[str, bool | str] = {"none": False, "blocks": True, "full": "full"}  # word -> RuntimeSettings.compile


def _by_group(pipe: Any, device: str) -> None:
    import torch

    # without a stream: it loads the block that came next before, and a skipped step may run another one
    pipe.enable_group_offload(torch.device(device), num_blocks_per_group=1)


# Ways to let weights that do not run wait in the machine's memory, by diffusers' own means. Each takes a pipeline that
# is on the CPU, and the device where it runs.
OFFLOADS: dict[str, Callable[[Any, str], None]] = {
    "none": lambda pipe, device: None,
    "model": lambda pipe, device: pipe.enable_model_cpu_offload(device=device),  # a part at a time is on the device
    "group": _by_group,  # a block
    "sequential": lambda pipe, device: pipe.enable_sequential_cpu_offload(device=device),  # a layer
}


@dataclass(frozen=True)
class RuntimeSettings:
    """How the network runs. A run and its reference must have the same settings, except for a noise floor.

    Attributes:
        batch_size: how many samples of a prompt are made at once; only the first is kept.
        compile: what torch.compile compiles: False (also "none"), True (also "blocks": every block), "full" (the
            denoiser). Older ids have False and True.
        attention: a backend of diffusers; None means its default.
    """

    batch_size: int = 1
    compile: bool | str = False
    attention: str | None = None

    def __post_init__(self) -> None:
        whole("runtime.batch_size", self.batch_size, most=4096)
        if not isinstance(self.compile, bool):
            word = one_of("runtime.compile", self.compile, tuple(COMPILED))
            object.__setattr__(self, "compile", COMPILED[word])
        if self.attention is not None:  # imported only when asked for: it takes seconds
            from diffusers.models.attention_dispatch import AttentionBackendName

            one_of("runtime.attention", self.attention, tuple(backend.value for backend in AttentionBackendName))


@dataclass(frozen=True)
class EngineSettings:
    """Settings of Ray, for several workers: the cluster to join (None starts one), and whether it shows a dashboard."""

    address: str | None = None
    dashboard: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.address, str | None):
            raise BadValue(f"engine.address={brief(self.address)} is no address: write auto or <host>:<port>")
        boolean("engine.dashboard", self.dashboard)


def check_memory_keys(vae_tiling: object, vae_slicing: object, offload: object) -> None:
    """
    Raises:
        BadValue: a value of the wrong kind.
    """
    boolean("model.vae_tiling", vae_tiling)
    boolean("model.vae_slicing", vae_slicing)
    one_of("model.offload", offload, tuple(OFFLOADS))


def check_machine(offload: str, device: str | None) -> None:
    """Refuse what this machine cannot run. No model is loaded.

    Args:
        device: the run's; None: the GPU if there is one, else the CPU.

    Raises:
        UserError: there is no card to which weights could move.
    """
    if offload == "none":
        return
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        raise UserError(f"model.offload={offload} moves weights to a GPU, and this run has none: leave it out")
