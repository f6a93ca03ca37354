"""Ray's actors equal this process, and one that dies fails its own task only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from command_line import PROGRAM, Command, draw, files_below, write_tiny_model
from places import ROOT, TESTS
from spread_work import Doubling

from omgsr_cli.engines.ray_actors import RayActors
from omgsr_cli.errors import DeviceError, ModelError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


# Ray starts some dozen processes here, each of which takes seconds of a processor: on a machine that does much else
# this is minutes.
_PATIENCE_S = 240


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends what takes longer, as Ctrl-C would."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError(f"Ray timed out: no end after {seconds} s, load {os.getloadavg()[0]:.0f}")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray on this machine, started once for all that the test does."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's processes look up the machine's own address, which the tests' cut network does not tell from another.
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    try:
        with at_most(_PATIENCE_S):
            ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False)
    except Exception as error:
        if "timed out" not in str(error) or "OMGSR_NEEDS_RAY" in os.environ:
            raise
        pytest.skip(f"Ray could not start: {error}")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("here")
@pytest.mark.long
def test_actors_equal_this_process_and_a_dead_one_fails_its_task_only(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_most(_PATIENCE_S):
        tasks_are_done_by_actors_that_die(tmp_path)
    with at_most(_PATIENCE_S):
        images_are_those_of_one_process(tmp_path, capfdbinary, monkeypatch)
    with at_most(_PATIENCE_S):
        a_signal_ends_the_waiting(tmp_path)
    with at_most(_PATIENCE_S):
        an_actor_that_cannot_start_is_not_waited_for_for_ever(tmp_path)


def tasks_are_done_by_actors_that_die(tmp_path: Path) -> None:
    work = Doubling(tmp_path, fatal=frozenset({7}), fatal_once=frozenset({3}))
    engine = RayActors("cpu", workers=2, patience_s=120)
    begun: list[int] = []
    said: list[str] = []

    def say(text: str, *, detail: bool = False) -> None:
        said.append(text)

    results = sorted(engine.run(work, range(10), on_start=begun.append, say=say))
    assert results == sorted(
        [*((2 * number, "") for number in range(10) if number != 7), (7, "its process ended twice")]
    )
    assert sorted(begun) == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9]
    assert said == ["opened"]
    with pytest.raises(ModelError, match="there is no model") as caught:
        list(engine.run(Doubling(tmp_path, broken=True), [1], on_start=begun.append, say=say))
    assert caught.value.hint == "make one"
    with pytest.raises(DeviceError, match="end as they start"):
        list(engine.run(Doubling(tmp_path, dies=True), [1], on_start=begun.append, say=say))
    # More than there is room for: those that never start are not waited for.
    many = RayActors("cpu", workers=4).run(Doubling(tmp_path), range(20, 30), on_start=begun.append, say=say)
    assert sorted(many) == [(2 * number, "") for number in range(20, 30)]


def images_are_those_of_one_process(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMGSR_MODEL", str(write_tiny_model(tmp_path / "model")))
    omgsr = Command(capfdbinary)
    for number in range(4):
        draw(tmp_path / "in" / f"{number}.png", 5 + number, 7)
    (tmp_path / "in" / "broken.png").write_bytes(b"")
    assert omgsr(tmp_path / "in", "-o", tmp_path / "one", "--device", "cpu").code == 1
    shown = omgsr(tmp_path / "in", "-o", tmp_path / "ray", "--engine", "ray", "--workers", "2", "--device", "cpu")
    assert (shown.code, len(shown.lines), len(shown.errors)) == (1, 4, 1)
    assert "the file is empty" in shown.errors[0]
    names = files_below(tmp_path / "one")
    assert files_below(tmp_path / "ray") == names
    for name in names:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def a_signal_ends_the_waiting(tmp_path: Path) -> None:
    """While an actor does what takes long."""
    slow = Doubling(tmp_path, slow=frozenset({31}))
    engine = RayActors("cpu", workers=1, patience_s=120)
    begun: list[int] = []

    def begin(task: int) -> None:
        begun.append(task)
        signal.alarm(1)

    with pytest.raises(TimeoutError), closing(engine.run(slow, [31], on_start=begin, say=nothing)) as results:
        list(results)
    assert begun == [31]


def nothing(text: str, *, detail: bool = False) -> None:
    pass


def an_actor_that_cannot_start_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """As where the cluster is full of others' work."""

    @ray.remote(num_cpus=2)
    class Other:
        def ready(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.ready.remote())
    engine = RayActors("cpu", workers=1, patience_s=2)
    with pytest.raises(DeviceError, match="no Ray actor could start within 2 s") as caught:
        list(engine.run(Doubling(tmp_path), [1], on_start=lambda task: None, say=nothing))
    assert "ray status" in (caught.value.hint or "")
    ray.kill(other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_work_of_actors_leaves_no_partial_files(tmp_path: Path, number: signal.Signals) -> None:
    model = write_tiny_model(tmp_path / "model")
    draw(tmp_path / "in" / "a.png", 700, 700)
    draw(tmp_path / "in" / "b.png", 700, 700)
    command: list[str | Path] = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--tile", "64"]
    paths = [str(TESTS), *filter(None, [os.environ.get("OMGSR_RAY_PATH")])]
    process = subprocess.Popen(
        [*PROGRAM, *map(str, command), "--engine", "ray", "--workers", "2", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    with at_most(_PATIENCE_S):
        while not files_below(tmp_path / "out"):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "received at" not in err
    assert files_below(tmp_path / "out") == []
