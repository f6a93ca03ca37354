"""Settings and fixtures for all tests: no network, one thread, small models."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from places import SHARED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from command_line import Command
    from hub_server import Hub
    from simulated_device import Card

# Set these before any library reads them; programs that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
# The cache of the tests is removed with them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["OMGSR_CACHE"] = tempfile.mkdtemp(prefix="omgsr-tests-")
    atexit.register(shutil.rmtree, os.environ["OMGSR_CACHE"], ignore_errors=True)
# Use one thread: computations of tests are so small that threads would mostly wait for each other.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
# Programs also inherit this: the folder's sitecustomize cuts their network, as `cut_network` does here.
_paths = [str(Path(__file__).parent / "offline"), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in _paths if path)
# A shell starts background jobs with Ctrl-C ignored, and programs that tests start would inherit this.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402 - after the environment is set
from network_guard import cut_network  # noqa: E402 - after the environment is set

# Do not use a fixture, because collection and the fixtures of modules and sessions must be offline too.
cut_network()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one process per core, up to four, for folders of tests; single files run faster in this process."""
    return min(4, os.cpu_count() or 1) if all(Path(each).is_dir() for each in config.args) else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of test data beside the checkout; skip the test if the folder is missing."""
    if not (SHARED / "README.md").is_file():
        pytest.skip(f"the data folder {SHARED} is not there; OMGSR_SHARED names another")
    return SHARED


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the inputs of a training run: a small model, images, and a random feature network."""
    from training_run import write_world

    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small random model; tests must not change it."""
    from command_line import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="session")
def sd_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random model of the Stable Diffusion family without a text encoder; tests must not change it."""
    from random_sd import write_sd_model

    return write_sd_model(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Return the device for tests: OMGSR_TEST_DEVICE, or else a simulated device."""
    from simulated_device import Card

    return Card(os.environ.get("OMGSR_TEST_DEVICE"), monkeypatch)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random base of the Stable Diffusion family with its text encoder; tests must not change it."""
    from random_sd import write_base

    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def adapter(base: Path) -> Path:
    """Return a random adapter for `base`, in the published layout."""
    from random_sd import write_adapter

    return write_adapter(base, base.parent / "adapter")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a local hub without repositories, for this process and the processes that it starts."""
    from hub_server import serve_hub
    from huggingface_hub import constants

    with serve_hub({}) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        yield running


@pytest.fixture
def omgsr(model: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`omgsr upscale` with the small random model."""
    from command_line import Command

    monkeypatch.setenv("OMGSR_MODEL", str(model))
    return Command(capfdbinary)


@pytest.fixture
def train(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """`omgsr train`."""
    from command_line import Command

    return Command(capfdbinary, "train")


@pytest.fixture
def bench(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`omgsr bench` with an empty cache and without weights of metrics."""
    from command_line import Command

    from omgsr_cli.benchmark import scoring

    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    scoring._hub_answers.cache_clear()
    return Command(capfdbinary, "bench")
