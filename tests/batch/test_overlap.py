"""Reading, restoring and writing overlap: order, failures and interruptions."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from identity_model import Identity
from PIL import Image
from torch import Tensor

from omgsr_cli.batch import upscaler as upscaling
from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.upscaler import Handover, Upscaler, start_ahead
from omgsr_cli.errors import FileError
from omgsr_cli.files.jobs import Job
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.options import ModelOptions, RestoreOptions, WriteOptions


def test_items_are_received_in_order() -> None:
    handover: Handover[int] = Handover()
    with ThreadPoolExecutor(1) as taker:
        taken = taker.submit(lambda: list(handover.take_all()))
        assert len(list(handover.give_all(range(50)))) == 50
        assert taken.result() == list(range(50))


def test_errors_of_the_producer_are_raised_on_both_sides() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise FileError("a bad end")

    handover: Handover[int] = Handover()
    with ThreadPoolExecutor(1) as taker:
        taken = taker.submit(lambda: list(handover.take_all()))
        with pytest.raises(FileError):
            list(handover.give_all(items()))
        with pytest.raises(FileError, match="a bad end"):
            taken.result()


def test_the_producer_stops_without_a_consumer() -> None:
    handover: Handover[int] = Handover()
    handover.leave()
    made: list[int] = []
    list(handover.give_all(made.append(number) or number for number in range(9)))  # type: ignore[func-returns-value] # counts
    assert made == [0]


def test_the_next_item_is_produced_ahead() -> None:
    second = threading.Event()

    def begin(number: int) -> int:
        if number == 2:
            second.set()
        if number == 3:
            raise FileError("three")
        return number

    with ThreadPoolExecutor(1) as executor:
        begun = start_ahead([1, 2, 3], begin, executor)
        assert next(begun) == 1
        assert second.wait(10)
        assert next(begun) == 2
        with pytest.raises(FileError, match="three"):
            next(begun)


def upscaler(tmp_path: Path, writers: int = 1, **write: bool) -> Upscaler:
    model = Identity(exact=True)
    settings = Settings(ModelOptions(), RestoreOptions(tile=64), WriteOptions(**write))
    finished = FinishedResults(settings, model.info, Remembered(tmp_path / "cache"))
    return Upscaler(settings, model.info, finished, lambda: model, writers=writers)


def draw(tmp_path: Path, count: int) -> list[Job]:
    jobs = []
    tmp_path.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        jobs.append(Job(tmp_path / f"{number}.png", tmp_path / "out" / f"{number}.png"))
    return jobs


def results_of(one: Upscaler, jobs: list[Job], on_start: Callable[[Job], None] = lambda job: None) -> list[str]:
    return [result.status for result in one.stream(jobs, on_start)]


def test_a_stream_writes_the_same_files_as_single_calls(tmp_path: Path) -> None:
    jobs = draw(tmp_path, 4)
    started: list[Job] = []
    assert results_of(upscaler(tmp_path, compare=True), jobs, started.append) == ["done"] * 4
    assert started == jobs
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(files) == 8
    again = upscaler(tmp_path, compare=True)
    assert [again(job).status for job in jobs] == ["skipped"] * 4
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    assert [again(job).status for job in jobs] == ["done"] * 4
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


def test_failed_and_finished_images_keep_their_order(tmp_path: Path) -> None:
    jobs = draw(tmp_path, 5)
    (tmp_path / "1.png").write_bytes(b"no image")
    one = upscaler(tmp_path)
    one(jobs[3])
    assert results_of(one, jobs) == ["done", "failed", "done", "skipped", "done"]


def test_the_model_works_while_another_image_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing waits until the model has begun the next image; one after the other would wait for ever."""
    jobs, began = draw(tmp_path, 2), threading.Event()
    real = upscaling.write_image

    def slow(*arguments: object, **options: object) -> tuple[str, ...]:
        notes = real(*arguments, **options)  # type: ignore[arg-type] # as they came
        assert began.wait(30)
        return notes

    monkeypatch.setattr(upscaling, "write_image", slow)
    assert results_of(upscaler(tmp_path), jobs, lambda job: began.set() if job is jobs[1] else None) == ["done"] * 2


def test_several_images_are_written_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them wait for each other; with one writer they would for ever."""
    jobs, both, real = draw(tmp_path, 4), threading.Barrier(2), upscaling.write_image

    def write(*arguments: object, **options: object) -> tuple[str, ...]:
        notes = real(*arguments, **options)  # type: ignore[arg-type] # as they came
        both.wait(30)
        return notes

    monkeypatch.setattr(upscaling, "write_image", write)
    results = list(upscaler(tmp_path, writers=2).stream(jobs, lambda job: None))
    assert [(result.source, result.status) for result in results] == [(job.source, "done") for job in jobs]


@pytest.mark.parametrize(("memory_mib", "is_ahead"), [(None, True), (512, True), (32, False)])
def test_the_next_image_is_read_ahead_only_if_memory_allows_both(
    memory_mib: int | None, is_ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, model = [], Identity(exact=True)
    for number in range(3):
        Image.fromarray(np.full((200, 200, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
        jobs.append(Job(tmp_path / f"{number}.png", tmp_path / "out" / f"{number}.png"))
    settings = Settings(ModelOptions(), RestoreOptions(memory=memory_mib), WriteOptions())
    finished = FinishedResults(settings, model.info, Remembered(tmp_path / "cache"))
    one = Upscaler(settings, model.info, finished, lambda: model)
    events: list[str] = []
    is_second_read = threading.Event()
    real_read, real_write = upscaling.read_image, upscaling.write_image

    def read(*args: object) -> object:
        events.append("read")
        if events.count("read") == 2:
            is_second_read.set()
        return real_read(*args)  # type: ignore[arg-type] # as they came

    def write(*args: object, **options: object) -> object:
        # Without enough memory, the next image has time to be read wrongly.
        assert is_second_read.wait(30 if is_ahead else 0.1) or not is_ahead
        notes = real_write(*args, **options)  # type: ignore[arg-type] # as they came
        events.append("written")
        return notes

    monkeypatch.setattr(upscaling, "read_image", read)
    monkeypatch.setattr(upscaling, "write_image", write)
    assert results_of(one, jobs) == ["done"] * 3
    assert (events[:2] == ["read", "read"]) == is_ahead
    if not is_ahead:
        assert events == ["read", "written"] * 3


def test_an_image_refused_beside_another_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, asked = draw(tmp_path, 3), []

    def free_bytes(device: object) -> int:
        """None for the second image as long as the first one is in work."""
        asked.append(device)
        return 0 if len(asked) == 2 else 1 << 30

    monkeypatch.setattr("omgsr_cli.batch.checks.free_memory_bytes", free_bytes)
    assert results_of(upscaler(tmp_path), jobs) == ["done"] * 3
    monkeypatch.setattr("omgsr_cli.batch.checks.free_memory_bytes", lambda device: 0)
    assert results_of(upscaler(tmp_path), draw(tmp_path / "more", 1)) == ["failed"]


def test_a_full_disk_fails_an_image_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = draw(tmp_path, 3)
    real = upscaling.write_image

    def full(image: object, place: object, **options: object) -> tuple[str, ...]:
        if str(place).endswith("1.png"):
            raise FileError("the disk is full") from OSError(errno.ENOSPC, "full")
        return real(image, place, **options)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(upscaling, "write_image", full)
    assert results_of(upscaler(tmp_path), jobs) == ["done", "failed", "done"]


def test_an_image_that_is_replaced_before_it_is_read_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is planned from its header, so another version must not take its place meanwhile."""
    jobs, check = draw(tmp_path, 1), upscaling.check_job

    def check_and_replace(job: Job, *others: Any) -> Any:
        checked = check(job, *others)
        assert isinstance(job.source, Path)
        Image.new("RGB", (9, 40)).save(tmp_path / "new.png")
        (tmp_path / "new.png").replace(job.source)
        return checked

    monkeypatch.setattr(upscaling, "check_job", check_and_replace)
    assert results_of(upscaler(tmp_path), jobs) == ["failed"]
    assert not list((tmp_path / "out").glob("*"))


def test_an_interruption_leaves_no_partial_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = draw(tmp_path, 2)
    one = upscaler(tmp_path)
    model = one._load()

    def stop(lq_latent: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "restore", stop)
    with pytest.raises(KeyboardInterrupt):
        results_of(one, jobs)
    assert not list((tmp_path / "out").glob("*"))


def test_a_stream_left_early_ends(tmp_path: Path) -> None:
    jobs = draw(tmp_path, 3)
    stream = upscaler(tmp_path).stream(jobs, lambda job: None)
    assert next(stream).status == "done"
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 30
    assert all(path.suffix == ".png" for path in (tmp_path / "out").iterdir())
