"""Ray's actors: they give what this process gives, and one that dies costs only its own task."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Command, draw, files_below, write_tiny_model
from spread_work import Doubling

from omgsr_cli.engines.ray_actors import RayActors
from omgsr_cli.errors import DeviceError, ModelError

ray = pytest.importorskip("ray")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray on this machine, started once for all that the test does."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's processes look up the machine's own address, which the tests' cut network does not tell from another.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    try:
        ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False)
    except Exception as error:
        if "timed out" not in str(error) or "OMGSR_NEEDS_RAY" in os.environ:
            raise
        pytest.skip(f"Ray could not start: {error}")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("here")
def test_actors_give_what_this_process_gives_and_one_that_dies_costs_its_task_alone(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Doubling(tmp_path, fatal=frozenset({7}), fatal_once=frozenset({3}))
    engine = RayActors("cpu", workers=2)
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
