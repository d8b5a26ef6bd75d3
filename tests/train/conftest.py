import pytest
import torch

from dpobench.train import accelerator_for
from tests.train import tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Folder of a start policy."""
    folder = tmp_path_factory.mktemp("start")
    tiny.llama().save_pretrained(folder)
    tiny.words().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs():
    """Pairs with the log-probabilities of the start policy."""
    return tiny.scored(tiny.rows(22), tiny.llama())


@pytest.fixture(scope="session")
def drifted():
    """Pairs whose reference is another model than the policy: no margin is zero."""
    return tiny.scored(tiny.rows(16, seed=3), tiny.llama(seed=5))


@pytest.fixture
def accelerator():
    return accelerator_for("cpu", "float32")
