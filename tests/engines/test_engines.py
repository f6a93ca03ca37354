"""Processes that die, parts of a batch, and reports of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from spread_work import Doubling

from omgsr_cli.batch.reports import RunReport, read_reports
from omgsr_cli.engines.local import Here, Processes, plan_places
from omgsr_cli.engines.work import Engine, Place
from omgsr_cli.errors import DeviceError, FileError, ModelError, UsageError
from omgsr_cli.files.inputs import Note
from omgsr_cli.files.jobs import Job, JobStream
from omgsr_cli.files.shards import Shard, parse_shard

TWO = (Place("a"), Place("b"))


def say_nothing(text: str, *, detail: bool = False) -> None:
    pass


def run(engine: Engine, work: Doubling, numbers: range) -> list[tuple[int, str]]:
    return sorted(engine.run(work, numbers, on_start=lambda number: None, say=say_nothing))


# Processes


def test_this_process_does_tasks_in_order(tmp_path: Path) -> None:
    begun: list[int] = []
    results = Here(Place()).run(Doubling(tmp_path), range(5), on_start=begun.append, say=say_nothing)
    assert [next(results), begun] == [(0, ""), [0]]
    assert list(results) == [(2, ""), (4, ""), (6, ""), (8, "")]


def test_two_processes_do_every_task_once(tmp_path: Path) -> None:
    said: list[str] = []
    results = Processes(TWO).run(
        Doubling(tmp_path), range(40), on_start=lambda number: None, say=lambda text, *, detail=False: said.append(text)
    )
    assert sorted(results) == [(2 * number, "") for number in range(40)]
    done = [path.name.split("-") for path in tmp_path.iterdir()]
    assert Counter(int(number) for number, _ in done) == dict.fromkeys(range(40), 1)
    assert str(os.getpid()) not in {process for _, process in done}
    assert said == ["opened"]


def test_a_process_that_dies_is_replaced_and_its_task_tried_once_more(tmp_path: Path) -> None:
    work = Doubling(tmp_path, fatal=frozenset({7}), fatal_once=frozenset({3, 12}))
    results = run(Processes(TWO), work, range(20))
    lost = "its process was killed (signal 9), twice"
    assert results == sorted([*((2 * number, "") for number in range(20) if number != 7), (7, lost)])
    tried = Counter(int(path.name.split("-")[0]) for path in tmp_path.iterdir())
    assert tried == {number: 2 if number in (3, 7, 12) else 1 for number in range(20)}


def test_a_worker_that_cannot_open_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model") as caught:
        run(Processes(TWO), Doubling(tmp_path, broken=True), range(3))
    assert caught.value.hint == "make one"
    with pytest.raises(DeviceError, match=r"killed \(signal 9\) as they start"):
        run(Processes(TWO[:1]), Doubling(tmp_path, dies=True), range(3))


def test_no_tasks_start_no_processes(tmp_path: Path) -> None:
    assert run(Processes(TWO), Doubling(tmp_path, dies=True), range(0)) == []


@pytest.mark.parametrize("engine", [Here(Place()), Processes(TWO)])
def test_results_are_yielded_while_tasks_are_yet_to_arrive(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("work", "local"):
        monkeypatch.setattr(f"omgsr_cli.engines.{place}.IDLE_S", 0.02)
    results: list[tuple[int, str]] = []

    def tasks() -> Iterator[int | None]:
        for number in range(3):
            yield number
            until = time.monotonic() + 60
            while len(results) <= number:
                assert time.monotonic() < until
                yield None

    for result in engine.run(Doubling(tmp_path), tasks(), on_start=lambda number: None, say=say_nothing):
        results.append(result)
    assert results == [(0, ""), (2, ""), (4, "")]


def test_finished_tasks_are_yielded_before_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def interrupted(connections: list[Connection], timeout_s: float | None) -> list[Any]:
        heard = wait(connections, timeout_s)
        if started:
            raise KeyboardInterrupt
        return heard

    monkeypatch.setattr("omgsr_cli.engines.local.wait", interrupted)
    results = Processes(TWO[:1]).run(Doubling(tmp_path), range(3), on_start=started.append, say=say_nothing)
    assert next(results) == (0, "")
    with pytest.raises(KeyboardInterrupt):
        next(results)


def test_processes_share_devices_evenly() -> None:
    assert plan_places([None], None) == (Place(None, 1),)
    assert plan_places(["cuda:0", "cuda:1"], None) == (Place("cuda:0", 1), Place("cuda:1", 1))
    three = plan_places(["cuda:0", "cuda:1"], 3)
    assert three == (Place("cuda:0", 2), Place("cuda:1", 1), Place("cuda:0", 2))


# Parts


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_parts_are_disjoint_and_complete(count: int) -> None:
    jobs = tuple(Job(Path(f"/in/{n}.png"), Path(f"/out/{n}.png"), f"a/{n}.png") for n in range(1000))
    found = JobStream((*jobs[:500], FileError("x: no such file"), Note("kept")), iter(jobs[500:]))
    rest = list(found.rest or ())
    parts = [
        list(JobStream(found.first, iter(rest)).select(Shard(number, count).holds_planned))
        for number in range(1, count + 1)
    ]
    taken = [one for part in parts for one in part if isinstance(one, Job)]
    assert len(taken) == 1000
    assert set(taken) == set(jobs)
    assert sum(isinstance(one, FileError) for part in parts for one in part) == 1
    assert all(Note("kept") in part for part in parts)
    assert max(map(len, parts)) < 2000 / count + 20


def test_a_part_does_not_depend_on_the_place_of_the_folder() -> None:
    jobs = (Job(Path(root) / "b.png", None, "b.png") for root in ("/mnt", "/data"))
    assert len(set(map(Shard(2, 3).holds_planned, jobs))) == 1
    # Fixed for ever: a run that is resumed with another version keeps its parts.
    assert [next(n for n in range(1, 9) if Shard(n, 8).holds(name)) for name in ("a.png", "b.png", "ä/c.jpg")] == [
        7,
        2,
        1,
    ]


ARRAY = {"SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "40", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("3/8", {}, Shard(3, 8)),
        ("auto", {"RANK": "0", "WORLD_SIZE": "4"}, Shard(1, 4)),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_ID": "30"}, Shard(3, 4)),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_ID": "40", "RANK": "1", "WORLD_SIZE": "2"}, Shard(8, 8)),
    ],
)
def test_a_part_comes_from_the_option_or_a_scheduler(text: str, environment: dict[str, str], shard: Shard) -> None:
    assert parse_shard(text, environment) == shard


@pytest.mark.parametrize(
    ("text", "environment", "wrong"),
    [
        ("0/8", {}, "--shard 0/8"),
        ("9/8", {}, "--shard 9/8"),
        ("two", {}, "--shard two"),
        ("auto", {}, "neither RANK"),
        ("auto", {"RANK": "4", "WORLD_SIZE": "4"}, "RANK 4"),
        ("auto", {"RANK": "0"}, "WORLD_SIZE is ''"),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_ID": "15"}, "not evenly spaced"),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MAX": "41"}, "SLURM_ARRAY_TASK_ID"),
    ],
)
def test_an_invalid_part_is_a_usage_error(text: str, environment: dict[str, str], wrong: str) -> None:
    if "TASK_ID" in wrong:
        environment = {**environment, "SLURM_ARRAY_TASK_ID": ""}
    with pytest.raises(UsageError, match=wrong):
        parse_shard(text, environment)


# Reports


def test_a_report_covers_all_runs_and_survives_a_partial_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000, 2000))
    monkeypatch.setattr("omgsr_cli.batch.reports.time.time", lambda: next(now))
    path = tmp_path / "new" / "run.jsonl"
    with RunReport(path) as report:
        report.begin(4, "1/2")
        report.add({"input": "a", "status": "done"})
        report.add({"input": "b", "status": "failed", "error": "b: the file is truncated"})
        report.add({"input": "c", "status": "failed", "error": "c: the file is truncated"})
    with open(path, "ab") as file:
        file.write(b'{"input": "d", "sta')
    with RunReport(path) as report:
        report.begin(4, "1/2")
        report.add({"input": "a", "status": "skipped"})
        report.add({"input": "b", "status": "done"})
    state = read_reports([path])
    assert (state.files, state.finished, state.failed) == (4, 2, 1)
    assert [name for name in "abcd" if state.has_failed(name)] == ["c"]
    assert (state.left, state.done, state.seconds, state.seconds_left) == (1, 1, 2, 2)
    assert state.reasons == {"the file is truncated": 1}
    other = tmp_path / "two.jsonl"
    with RunReport(other) as report:
        report.begin(5, "2/2")
    assert read_reports([path, other]).files == 9


READ = """
import json, sys
from pathlib import Path
from omgsr_cli.batch.reports import read_reports

def peak_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak_kib()
state = read_reports([Path(sys.argv[1])])
told = [state.files, state.finished, state.failed, state.left, state.reasons, peak_kib() - before]
print(json.dumps([*told, *map(state.has_failed, sys.argv[2:])]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is asked for in another way there")
def test_a_report_of_many_files_takes_little_memory(tmp_path: Path) -> None:
    """Every third fails, and half of those are done by a second run; of each file its last record counts."""
    count = 60_000
    begun = json.dumps({"run": {"files": count, "part": None}, "time": 1})
    done = '{"input": "in/%06d.png", "status": "done", "time": 2}'
    failed = '{"input": "in/%06d.png", "status": "failed", "error": "in/%06d.png: too large", "time": 2}'
    lines = [begun, *(done % n if n % 3 else failed % (n, n) for n in range(count))]
    lines += [begun, *(done % n for n in range(0, count // 2, 3))]
    (tmp_path / "run.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-c", READ, tmp_path / "run.jsonl", "in/000000.png", f"in/{count - 3:06}.png"]
    *state, grown_kib, again, still = json.loads(subprocess.check_output(command, text=True, cwd=ROOT))
    assert state == [count, count * 5 // 6, count // 6, 0, {"too large": count // 6}]
    assert (again, still) == (False, True)
    # A file takes about 100 bytes, however long its name is.
    assert grown_kib << 10 < 150 * count


def test_a_report_of_unknown_length_has_no_end(tmp_path: Path) -> None:
    with RunReport(tmp_path / "run.jsonl") as report:
        report.begin(None, None)
        report.add({"input": "a", "status": "done"})
    state = read_reports([tmp_path / "run.jsonl"])
    assert (state.files, state.left, state.seconds_left) == (None, None, None)


def test_another_file_is_not_accepted_as_a_report(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text(json.dumps({"a": 1}) + "\n")
    for path, wrong in [(tmp_path / "other.jsonl", "is not a report"), (tmp_path / "none", "No such file")]:
        with pytest.raises(UsageError, match=wrong):
            read_reports([path])
    image = tmp_path / "a.png"
    for content in (b"\x89PNG\r\n\x1a\n", b'{"a": 1}\n', b"{no JSON}\n", b"\n"):
        image.write_bytes(content)
        with pytest.raises(UsageError, match=r"a\.png .* not a report"):
            RunReport(image)
        assert image.read_bytes() == content
    with pytest.raises(UsageError, match="--report"):
        RunReport(tmp_path)
