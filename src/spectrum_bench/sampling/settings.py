"""The typed, frozen settings of a run, and every range check on them.

`RunSettings.from_config` takes a resolved configuration as plain values (the keys of configs/base.yaml), whether Hydra
or Python composed it. Below `commands/` nobody sees such a dict again.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from spectrum_bench.checks import boolean, brief, is_number, is_whole, one_of, whole
from spectrum_bench.errors import BadValue
from spectrum_bench.sampling import limits
from spectrum_bench.sampling.ip_adapter import check_ip_adapter
from spectrum_bench.sampling.lora import Lora, check_loras
from spectrum_bench.sampling.quantizing import check_quantization_keys
from spectrum_bench.sampling.runtime import EngineSettings, RuntimeSettings, check_memory_keys
from spectrum_bench.sampling.text import cleaned

SCHEMA = 2  # of config.yaml, records and summary.json. Up to commit 6771973 they had no number, which means 1
DTYPES = ("float32", "bfloat16", "float16")
INITS = ("pretrained", "random")
# Model settings that decide no pixel: `weights` does, which tells the LoRAs and quantized files too.
DESCRIPTIVE = {"repo", "revision", "judge", "note", "metrics", "dev_prompts", "needs", "lora", "gguf", "page"}
DESCRIPTIVE |= {"teacher", "controlnet", "ip_adapter"}
# Keys of an algorithm's YAML that are no constants of its own.
DESCRIBED = ("name", "forecaster", "paper", "fidelity", "linear")
# Old import paths of parts that have moved. Users' own configurations may still name them.
MOVED = {
    "spectrum_bench.sites.LastBlock": "spectrum_bench.caching.sites.stack.LastBlock",
    "spectrum_bench.sites.StackResidual": "spectrum_bench.caching.sites.stack.StackResidual",
    "spectrum_bench.sites.TailResidual": "spectrum_bench.caching.sites.stack.TailResidual",
    "spectrum_bench.sites.Modules": "spectrum_bench.caching.sites.modules.Modules",
    "spectrum_bench.sites.OutputResidual": "spectrum_bench.caching.sites.output.OutputResidual",
    "spectrum_bench.tokens.Tokens": "spectrum_bench.caching.sites.tokens.Tokens",
    "spectrum_bench.tokens.Alternating": "spectrum_bench.caching.sites.tokens.Alternating",
    "spectrum_bench.clusters.Clusters": "spectrum_bench.caching.sites.clusters.Clusters",
    "spectrum_bench.unet.Shallow": "spectrum_bench.caching.sites.unet.Shallow",
    "spectrum_bench.peers.DiffusersCache": "spectrum_bench.caching.peers.DiffusersCache",
    "spectrum_bench.peers.CacheDiT": "spectrum_bench.caching.peers.CacheDiT",
}


@dataclass(frozen=True)
class Part:
    """A schedule, a forecaster or a site as a configuration names it.

    Attributes:
        target: the import path.
        constants: the arguments; a value may be a Part too.
        partial: whether the target is a function that gets more arguments when it is called.
        revision: raised by a fix that changes pixels, so that old and new samples never mix.
    """

    target: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False
    revision: int = 1

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> "Part":
        """A node of a configuration: `_target_`, `_partial_`, `revision` and the constants.

        Raises:
            BadValue: it names nothing, or a constant is no finite number.
        """
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            raise BadValue(f"{brief(node)} is no schedule, forecaster or site: its YAML needs a _target_")
        limits.check_values(node["_target_"].rpartition(".")[2], node)
        constants = {
            key: cls.from_node(value) if isinstance(value, Mapping) and "_target_" in value else value
            for key, value in node.items()
            if key not in ("_target_", "_partial_", "revision")
        }
        target = str(node["_target_"])
        return cls(
            MOVED.get(target, target),
            constants,
            bool(node.get("_partial_")),
            whole("revision", node.get("revision", 1)),
        )

    def to_node(self) -> dict[str, Any]:
        """The node of a configuration. It has `revision` only if that is not 1."""
        head: dict[str, Any] = {"_target_": self.target} | ({"_partial_": True} if self.partial else {})
        head |= {"revision": self.revision} if self.revision != 1 else {}
        return head | {k: v.to_node() if isinstance(v, Part) else v for k, v in self.constants.items()}


@dataclass(frozen=True)
class MethodSettings:
    """An algorithm's name and parts. `constants` are its own keys (algo.w), which its parts refer to."""

    name: str
    schedule: Part
    forecaster: Part | None
    site: Part | None
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Part | None]:
        """The parts by their names in ids, labels and records."""
        return {"schedule": self.schedule, "forecaster": self.forecaster, "site": self.site}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MethodSettings":
        algo, site = config["algo"], config.get("site")
        limits.check_mapping("algo", algo)
        limits.check_name("algo.name", algo.get("name"))
        for option in ("history", "correct"):  # a site around the site
            if config.get(option):
                if not site:
                    raise BadValue(f"algo={algo['name']} caches nothing: leave {option}= out")
                site = {**config[option], "site": site}
        return cls(
            name=str(algo["name"]),
            schedule=Part.from_node(config["schedule"]),
            forecaster=Part.from_node(algo["forecaster"]) if algo.get("forecaster") else None,
            site=Part.from_node(site) if site else None,
            constants={key: value for key, value in algo.items() if key not in DESCRIBED},
        )


@dataclass(frozen=True)
class ModelSettings:
    """A model's YAML (configs/model). Every key but `name` has a default. `extra` holds other keys, to which the YAML's
    interpolations may refer.

    Attributes:
        repo: a folder in diffusers' format, or a Hugging Face repository.
        revision: the commit of the Hugging Face repository; None: the newest one that was fetched.
        pipeline: the class of diffusers that puts the repository's parts together; None: the one that it names.
        init: "pretrained", or "random": the architecture alone.
        arguments: arguments of the pipeline's call.
        width, height: in pixels.
        num_frames, fps: number of frames of a clip, and frames a second; fps None means pictures.
        offload: which parts of the pipeline wait in the machine's memory: sampling.runtime.OFFLOADS.
        quantization, gguf: how the denoiser's weights are kept, and the files of those that are quantized already:
            sampling.quantizing.
        controlnet, ip_adapter: a ControlNet's folder or repository, an IP-Adapter's files: the modules of these names.
        lora: LoRA files and their weights: sampling.lora.
        weights: tells the weights from others of the same name (sampling.models.identify); None if not computed yet.
    """

    name: str
    repo: str | None = None
    revision: str | None = None
    pipeline: str | None = None
    init: str = "pretrained"
    dtype: str = "bfloat16"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    width: int = 1024
    height: int = 1024
    num_frames: int | None = None
    frame_stride: int = 4
    fps: float | None = None
    variant: str | None = None
    vae_dtype: str | None = None
    vae_tiling: bool = False
    vae_slicing: bool = False
    offload: str = "none"
    quantization: str = "none"
    gguf: Mapping[str, str] = field(default_factory=dict)
    controlnet: str | None = None
    ip_adapter: Mapping[str, Any] = field(default_factory=dict)
    lora: tuple[Lora, ...] = ()
    teacher: str | None = None  # the model that this one is distilled from, whose runs may be its reference
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    judge: str | None = None
    note: str | None = None
    metrics: tuple[str, ...] | None = None
    dev_prompts: str | None = None
    needs: tuple[str, ...] | None = None  # what each line of the prompt file gives beside the prompt
    page: Mapping[str, Any] | None = None  # what docs/models.md says of it: scripts/models.py
    weights: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, node: Mapping[str, Any]) -> "ModelSettings":
        """
        Raises:
            BadValue: a value of the wrong kind.
        """
        known = {entry.name for entry in fields(cls)} - {"extra"}
        limits.check_mapping("model", node)
        limits.check_name("model.name", node.get("name"))
        limits.check_mapping("model.scheduler", node.get("scheduler") or {})
        limits.check_values("model", node)
        given = {key: value for key, value in node.items() if key in known and value is not None}
        for key, example in {"metrics": "[psnr,ssim]", "needs": "[image]"}.items():
            if not isinstance(names := given.get(key, []), list) or not all(isinstance(name, str) for name in names):
                raise BadValue(f"model.{key}={brief(names)} is no list: write {example}")
            given |= {key: tuple(names)} if key in given else {}
        given |= {"ip_adapter": check_ip_adapter(given["ip_adapter"])} if given.get("ip_adapter", {}) != {} else {}
        given |= {"lora": check_loras(given["lora"])} if "lora" in given else {}
        extra = {key: value for key, value in node.items() if key not in known}
        settings = cls(**given, extra=extra)
        settings._check(node)
        limits.check_arguments(node.get("arguments", {}))
        return settings

    def _check(self, node: Mapping[str, Any]) -> None:
        for key in ("dtype", "vae_dtype"):
            if (value := getattr(self, key)) is not None:
                one_of(f"model.{key}", value, DTYPES)
        one_of("model.init", self.init, INITS)
        for key in ("repo", "pipeline", "variant", "judge", "note", "dev_prompts", "teacher", "controlnet"):
            if not isinstance(node.get(key, ""), str | None):
                raise BadValue(f"model.{key}={brief(node[key])} is no text")
            if node.get(key) is not None and key in ("repo", "judge", "dev_prompts", "controlnet"):
                limits.check_path(f"model.{key}", node[key])
        if self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}", str(self.revision)):
            raise BadValue(f"model.revision={brief(self.revision)} is no commit: write its 40 hexadecimal digits")
        for key in ("controlnet", "ip_adapter", "pipeline"):
            if getattr(self, key) and self.init == "random":
                raise BadValue(f"model.{key} is of files: leave it out, or leave out model.init=random")
        check_memory_keys(self.vae_tiling, self.vae_slicing, self.offload)
        check_quantization_keys(self.quantization, self.gguf, self.init, self.offload)
        if self.quantization != "none" and any(lora.get("fuse") for lora in self.lora):
            raise BadValue("model.lora: fuse adds to plain weights: leave it out, or model.quantization")
        for key in ("width", "height"):
            value = node.get(key, getattr(self, key))
            if not (is_whole(value) and value > 0 and value % 16 == 0):
                raise BadValue(f"model.{key} must be a positive multiple of 16 pixels, not {brief(value)}")
            whole(f"model.{key}", value, *limits.MODEL[key])
        whole("model.frame_stride", self.frame_stride, *limits.MODEL["frame_stride"])
        self._check_clip()

    def _check_clip(self) -> None:
        frames = self.num_frames if self.num_frames is not None else 1
        if not (is_whole(frames) and frames > 0 and (frames - 1) % self.frame_stride == 0):
            raise BadValue(
                f"model.num_frames must be 1 more than a multiple of {self.frame_stride} (the VAE's step in time; "
                f"another one's is model.frame_stride), not {brief(frames)}"
            )
        whole("model.num_frames", frames, *limits.MODEL["num_frames"])
        if frames * self.width * self.height > limits.MOST_PIXELS:
            raise BadValue(f"{frames} frames of {self.width} x {self.height} pixels are too many for a sample")
        if self.num_frames is not None and self.fps is None:
            raise BadValue(f"model={self.name} has num_frames but no fps: write into its YAML how fast its clips run")
        if self.fps is not None and not (is_number(self.fps) and 0 < self.fps <= 240):
            raise BadValue(f"model.fps must be a number of frames a second, not {brief(self.fps)}")

    def to_config(self) -> dict[str, Any]:
        """The node of a configuration: some keys always, and the others if they differ from their defaults."""
        always = ("name", "repo", "init", "dtype", "arguments", "width", "height", "judge")
        defaults = {entry.name: entry.default for entry in fields(self)}
        values = {
            entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in ("extra", "page")
        }
        node = {k: v for k, v in values.items() if k in always or v not in (defaults[k], {}, None)}
        if self.metrics is not None:
            node["metrics"] = list(self.metrics)
        if self.lora:
            node["lora"] = [dict(lora) for lora in self.lora]
        return node | dict(self.extra)


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run: the resolved keys of configs/base.yaml."""

    model: ModelSettings
    method: MethodSettings
    num_inference_steps: int = 50
    seed: int = 42
    samples_per_prompt: int = 1
    prompt_file: str = ""
    prompt_column: str | None = None
    total_prompt_num: int | None = None
    output_base_path: str = ""
    exp_name: str = "run"
    ngpu: int = 1
    engine: EngineSettings = field(default_factory=EngineSettings)
    device: str | None = None
    threads: int = 1
    warmup_samples: int = 0
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    retry_failed: bool = False
    keep_latents: int = 0

    def __post_init__(self) -> None:
        for key, (least, most) in limits.RUN.items():
            if (value := getattr(self, key)) is not None or key != "total_prompt_num":
                whole(key, value, least, most)
        if self.seed + self.samples_per_prompt > 2**63:
            raise BadValue(f"seed={self.seed} is too large: keep it below 2^63")
        boolean("retry_failed", self.retry_failed)
        if self.prompt_column is not None and not isinstance(self.prompt_column, str):
            raise BadValue(f"prompt_column={brief(self.prompt_column)} is no name of a column")
        limits.check_folder_name(self.exp_name)
        _check_device(self.device)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "RunSettings":
        """The settings of a resolved configuration. Keys that a run does not read are ignored.

        Raises:
            BadValue: a value is of the wrong kind. Without this check the error would come after the model is loaded.
        """
        config = cleaned(config)
        given = {entry.name: config[entry.name] for entry in fields(cls) if entry.name in config}
        for key in ("exp_name", "output_base_path", "prompt_file"):
            if key in given:
                given[key] = limits.check_path(key, given[key])  # exp_name=20261122 is one
        if given.get("device") is not None:
            given["device"] = str(given["device"])
        given["model"] = ModelSettings.from_config(config["model"])
        given["method"] = MethodSettings.from_config(config)
        for kind, key in ((RuntimeSettings, "runtime"), (EngineSettings, "engine")):
            node = config.get(key, {})
            limits.check_mapping(key, node, tuple(entry.name for entry in fields(kind)))
            given[key] = kind(**node)
        return cls(**given)

    def to_config(self) -> dict[str, Any]:
        """The configuration in the form of config.yaml."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "method"}
        method = self.method
        algo = {"name": method.name} | dict(method.constants)
        return plain | {
            "model": self.model.to_config(),
            "runtime": asdict(self.runtime),
            "engine": asdict(self.engine),
            "schedule": method.schedule.to_node(),
            "site": method.site.to_node() if method.site else None,
            "algo": algo | {"forecaster": method.forecaster.to_node() if method.forecaster else None},
        }


def _check_device(device: str | None) -> None:
    if device is None:
        return
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise BadValue(f"device={brief(device)} is none of cpu, cuda, cuda:<number>")
    if device.startswith("cuda"):
        import torch

        if int(device[5:] or 0) >= torch.cuda.device_count():
            raise BadValue(f"device={device}: torch sees {torch.cuda.device_count()} GPUs; use device=cpu")
