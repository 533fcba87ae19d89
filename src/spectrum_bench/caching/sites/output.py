"""A skipped step runs nothing at all: the denoiser's own output is cached."""

from dataclasses import dataclass

from diffusers.models.modeling_outputs import Transformer2DModelOutput

from spectrum_bench.caching.sites.base import argument


@dataclass(frozen=True)
class OutputResidual:
    """What the denoiser's output has more than the latent it was given (EasyCache, arXiv:2507.02860)."""

    runs_blocks = False

    def attach(self, denoiser, anatomy, session, undo):
        run = denoiser.forward

        def forward(*args, **kwargs):
            x = argument(denoiser, 0, args, kwargs)
            if session.computing:
                out = run(*args, **kwargs)
                if out[0].shape != x.shape:
                    raise ValueError(f"{type(denoiser).__name__} cannot be skipped: its output is no latent's shape")
                session.branch.store("output", out[0] - x)
                return out
            v = x + session.branch.forecast("output")
            return Transformer2DModelOutput(sample=v) if kwargs.get("return_dict", True) else (v,)

        denoiser.forward = forward
        undo.callback(delattr, denoiser, "forward")
