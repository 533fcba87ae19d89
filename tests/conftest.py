import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

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


@pytest.fixture(scope="session")
def weights(random_pipe, tmp_path_factory):
    """The random pipeline as a folder that from_pretrained reads."""
    folder = tmp_path_factory.mktemp("weights")
    random_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def compose():
    """Compose configs/base.yaml as the command line would: compose("algo=fora", "seed=1")."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    from spectrum_bench.cli import CONFIGS

    def make(*words, config_name="base"):
        with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
            cfg = hydra.compose(config_name, list(words), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        OmegaConf.set_struct(cfg, True)
        return cfg

    return make
