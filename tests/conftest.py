import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)


def recipe(name: str) -> dict:
    """configs/train/<name>.yaml, composed."""
    import hydra
    from omegaconf import OmegaConf

    from spectrum_bench.paths import ROOT

    with hydra.initialize_config_dir(str(ROOT / "configs/train"), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose(name), resolve=True)


def no_identity(denoiser: torch.nn.Module) -> None:
    """Undo adaLN-Zero, under which a new block is the identity."""
    for parameter in denoiser.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.xavier_uniform_(parameter)


@pytest.fixture(scope="session")
def random_pipes():
    """Name of a recipe -> a pipeline of that miniature's sizes with random weights: for plumbing, never for quality."""
    from functools import cache

    from training import parts

    @cache
    def make(name: str):
        torch.manual_seed(0)
        pipe = parts.build(recipe(name))
        no_identity(parts.denoiser(pipe))
        pipe.vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="session")
def random_pipe(random_pipes):
    return random_pipes("flux")


@pytest.fixture(scope="session")
def weights(random_pipe, tmp_path_factory):
    """The random pipeline as a folder that from_pretrained reads."""
    folder = tmp_path_factory.mktemp("weights")
    random_pipe.save_pretrained(folder)
    return folder


def composed(*words: str, config_name: str = "base"):
    """configs/<config_name>.yaml as the command line would compose it."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    from spectrum_bench.paths import CONFIGS

    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = hydra.compose(config_name, list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg


def settings(*words: str, config_name: str = "base"):
    """The typed settings of such a configuration."""
    from spectrum_bench.commands.compose import settings_of

    return settings_of(composed(*words, config_name=config_name))


@pytest.fixture
def compose():
    return composed


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield
