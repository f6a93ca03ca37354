"""What every test gets: no network, few threads, and the data folder where there is one."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

# Before any library reads them; programs that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
# What runs remember is forgotten with the tests.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["OMGSR_CACHE"] = tempfile.mkdtemp(prefix="omgsr-tests-")
    atexit.register(shutil.rmtree, os.environ["OMGSR_CACHE"], ignore_errors=True)
_threads = max(1, min(2, os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, str(_threads))
# Likewise inherited: the folder's sitecustomize cuts their network as `cut_network` does here.
_paths = [str(Path(__file__).parent / "offline"), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in _paths if path)
# A shell starts what it puts into the background with Ctrl-C ignored, and programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402 - after the environment is set
from network_guard import cut_network  # noqa: E402 - likewise

# Not a fixture: collection, and fixtures of a module or the session, are to be offline too.
cut_network()

SHARED = Path(os.environ.get("OMGSR_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data beside the checkout; tests that need it are skipped where it is absent."""
    if not (SHARED / "README.md").is_file():
        pytest.skip(f"the data folder {SHARED} is not there; OMGSR_SHARED names another")
    return SHARED


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a training reads: a small model, pictures, and a random feature network."""
    from training_run import write_world

    return write_world(tmp_path_factory.mktemp("world"))
