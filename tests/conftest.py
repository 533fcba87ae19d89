import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def random_pipe():
    """A FluxPipeline of the miniature's sizes with random weights: for plumbing, never for quality."""
    import yaml

    from spectrum_bench.models import ROOT
    from tiny import parts

    torch.manual_seed(0)
    pipe = parts.build_flux(yaml.safe_load((ROOT / "configs/train/flux.yaml").read_text()))
    for parameter in pipe.transformer.parameters():  # undo adaLN-Zero, under which a block would be the identity
        if parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
    pipe.vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe
