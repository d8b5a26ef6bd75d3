"""Fixtures that several rooms' tests share; what is heavy is imported when a test needs it."""

import fcntl
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DATASETS = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the library of data sets an empty cache: it reads where its cache is when it is imported, at collection."""
    config.stash[DATASETS] = tempfile.TemporaryDirectory()
    os.environ["HF_DATASETS_CACHE"] = config.stash[DATASETS].name


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[DATASETS].cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with most slow tests first: with several processes the last file decides when all are done."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"real data and golden numbers are absent ({folder.name}/ beside the checkout)")
    return folder


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of one test run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def built_once(common_folder: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """Builds a folder in the first process that needs it: `built_once(name, build)` calls `build(folder)` and returns the folder."""

    def built(name: str, build: Callable[[Path], object]) -> Path:
        folder, done = common_folder / name, common_folder / f"{name}.done"
        with (common_folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                build(folder)
                done.touch()
        return folder

    return built


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(common_folder: Path) -> Iterator[None]:
    """No test reads or fills the cache of whoever runs it."""
    (common_folder / "cache").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPOBENCH_CACHE", str(common_folder / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two processes run the suite on two cores; a second thread in each would only wait, and rounding depends on the number."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dpobench(_cache_of_the_tests, tmp_path_factory):
    """The command line: `dpobench("status", folder)` runs it to its end, `dpobench.start(...)` does not wait."""
    from tests.commands import commands

    with commands(tmp_path_factory.mktemp("commands")) as started:
        yield started


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Folder of a start policy."""
    from tests.training import tiny

    folder = tmp_path_factory.mktemp("start")
    tiny.llama().save_pretrained(folder)
    tiny.words().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs():
    """Pairs with the log-probabilities of the start policy."""
    from tests.training import tiny

    return tiny.scored(tiny.rows(22), tiny.llama())


@pytest.fixture(scope="session")
def drifted():
    """Pairs whose reference is another model than the policy: no margin is zero."""
    from tests.training import tiny

    return tiny.scored(tiny.rows(16, seed=3), tiny.llama(seed=5))


@pytest.fixture
def accelerator():
    from dpobench.training.accelerate import accelerator_for

    return accelerator_for("cpu", "float32")


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer whose words are the letters."""
    from tests import tiny_checkpoints

    return tiny_checkpoints.tokenizer()


@pytest.fixture(scope="session")
def tiny():
    """Models, checkpoints and held-out inputs in memory: `tiny.llama(...)`."""
    from tests import tiny_checkpoints

    return tiny_checkpoints
