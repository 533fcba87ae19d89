import gc
import os
import signal
from functools import cache

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from helpers import composed, denoiser, drawing, recipe

torch.set_num_threads(1)
gc.set_threshold(50_000)  # with Python's own 700 the collector takes a twentieth of the time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and so would all that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and their children too


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the tests that run on every random pipeline, those on the FLUX alone are of the quick tier. Crashes come
    first, since they take long: at the end one worker would be alone with them."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "random_pipes" in item.fixturenames and parameters.get("name", "flux") != "flux":
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("crash") is None)
    gc.freeze()  # what imports made stays: nothing need walk over it again


@pytest.fixture(scope="session")
def random_pipes():
    """Name of a recipe -> a pipeline of that miniature's sizes with random weights: for plumbing, never for quality."""
    from training import parts

    from spectrum_bench.sampling.small import no_identity

    @cache
    def make(name: str):
        torch.manual_seed(0)
        pipe = parts.build(recipe(name))
        no_identity(denoiser(pipe))
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


@pytest.fixture
def words(weights, tmp_path):
    """A command line that draws two prompts in eight steps with the random pipeline."""
    return drawing(weights, tmp_path, ["a red ring", "a blue star"])


@pytest.fixture
def more_words(words, tmp_path):
    """The same with six prompts under spectrum."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red ring number {i}" for i in range(6)))
    return [*words, "algo=spectrum"]


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
