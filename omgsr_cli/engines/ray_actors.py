"""Run tasks in the actors of a Ray cluster or of this machine; paths and records are exchanged, but no pixels."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Generic

from omgsr_cli.engines.work import Place, Result, Say, Task, TaskQueue, Work
from omgsr_cli.errors import DeviceError, OmgsrError, UsageError
from omgsr_cli.files.atomic import give_up_partials
from omgsr_cli.packages import install_command

_MOST_FAILED_STARTS = 3
_OBJECT_STORE_BYTES = 128 << 20
_LISTEN_S = 0.5

# An actor does one task at a time, and in addition accepts the call that ends it.
_BESIDE = "beside"
_PATIENCE_WITH_ENDING_S = 10.0


@dataclass(frozen=True)
class RayActors:
    """Does tasks in actors, each of which opens the work once.

    Attributes:
        device: "cuda" or "xpu" gives each actor its own GPU; None does so if the cluster has GPUs.
        workers: maximum number of actors; None uses one per GPU, or else one per CPU; one for another device.
        address: address of the cluster, or "auto"; None starts Ray on this machine.
        patience_s: how long to wait for the first actor if the cluster is busy.
    """

    in_this_process: ClassVar[bool] = False
    device: str | None = None
    workers: int | None = None
    address: str | None = None
    patience_s: float = 3600.0

    def run(
        self, work: Work[Task, Result], tasks: Iterable[Task | None], *, on_start: Callable[[Task], None], say: Say
    ) -> Generator[Result, None, None]:
        """See `Engine.run`; all tasks must be available when they are drawn.

        Raises:
            UsageError: Ray is not installed.
            DeviceError: there is no cluster, or the actors end as they start.
        """
        if find_spec("ray") is None:
            raise UsageError("--engine ray: Ray is not installed", install_command("ray"))
        started = _connect(self.address)
        import ray

        try:
            place, count, on_gpu = plan_actors(self.device, self.workers, _count_in_cluster)
            # Ray must not retry: a lost task is tried once more here, by another actor.
            actor = ray.remote(
                num_cpus=1,
                num_gpus=int(on_gpu),
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=1,
                concurrency_groups={_BESIDE: 1},
            )(_Actor)
            pool = _Pool(work, iter(tasks), lambda: actor.remote(work, place), on_start, say)
            try:
                yield from pool.results(count, self.patience_s)
            finally:
                pool.close()
        finally:
            if started:
                ray.shutdown()


def plan_actors(device: str | None, workers: int | None, count_of: Callable[[str], int]) -> tuple[Place, int, bool]:
    """Choose where each actor works, how many there are, and whether each gets a GPU of its own.

    Args:
        device: as for `RayActors`.
        workers: as for `RayActors`.
        count_of: number of "GPU" or "CPU" in the cluster.
    """
    kind = (device or "cuda").partition(":")[0]
    # Ray counts Intel's GPUs too, but not Apple's: all actors of a machine share its one.
    on_gpu = kind in ("cuda", "xpu") and count_of("GPU") >= 1
    on_cpu = kind == "cpu" or (device is None and not on_gpu)
    own = count_of("GPU" if on_gpu else "CPU") if on_gpu or on_cpu else 1
    count = max(workers or own, 1)
    return Place(kind) if on_gpu else Place("cpu") if on_cpu else Place(device, count), count, on_gpu


@dataclass(frozen=True)
class _Answer:
    """The return value of an actor; errors are values, because Ray would only keep their traceback."""

    notes: list[tuple[str, bool]]
    result: Any = None
    error: OmgsrError | None = None


class _Actor:
    """Opens the work once, then does tasks."""

    def __init__(self, work: Work[Any, Any], place: Place) -> None:
        self._work, self._place = work, place
        self._notes: list[tuple[str, bool]] = []

    def open(self) -> _Answer:
        def say(text: str, *, detail: bool = False) -> None:
            self._notes.append((text, detail))

        def open_work() -> None:
            self._do = self._work.open(self._place, say)

        return self._answer(open_work)

    def do(self, task: Any) -> _Answer:
        return self._answer(lambda: self._do(task))

    def give_up(self) -> None:
        """Remove unfinished files; called while a task runs, before the actor is killed."""
        give_up_partials()

    def _answer(self, act: Callable[[], Any]) -> _Answer:
        try:
            result, error = act(), None
        except OmgsrError as caught:
            result, error = None, caught
        notes, self._notes[:] = list(self._notes), []
        return _Answer(notes, result, error)


class _Pool(Generic[Task, Result]):
    """The actors of one run and the waiting tasks."""

    def __init__(
        self,
        work: Work[Task, Result],
        tasks: Iterator[Task | None],
        start: Callable[[], Any],
        on_start: Callable[[Task], None],
        say: Say,
    ) -> None:
        self._work, self._start, self._on_start, self._say = work, start, on_start, say
        self._tasks = TaskQueue(tasks)
        self._failed_starts = 0
        self._said: set[str] = set()
        # The awaited answers, and their actors. An actor that cannot start yet stays among the opening ones and gets no
        # task, so no task waits for it.
        self._opening: dict[Any, Any] = {}
        self._doing: dict[Any, tuple[Any, Task]] = {}
        self._idle: list[Any] = []

    def results(self, count: int, patience_s: float) -> Iterator[Result]:
        for _ in range(count):
            self._add_actor()
        while self._keep_busy():
            for answer in self._wait(patience_s):
                yield from self._hear(answer)

    def _wait(self, patience_s: float) -> list[Any]:
        """The answers that have arrived; tasks may take long, but actors must start within the given time."""
        import ray

        began = time.monotonic()
        while True:
            try:
                # Wait in short intervals, because Python handles no signals while Ray waits.
                heard: list[Any] = ray.wait([*self._doing, *self._opening], num_returns=1, timeout=_LISTEN_S)[0]
            except SystemError as error:
                # Ray returns a result together with the exception of a signal, which Python does not accept.
                if error.__cause__ is None:
                    raise
                raise error.__cause__ from None
            if heard:
                return heard
            if not self._doing and time.monotonic() - began > patience_s:
                raise DeviceError(
                    f"no Ray actor could start within {patience_s:.0f} s",
                    "`ray status` shows the free resources of the cluster",
                )

    def close(self) -> None:
        """End the actors; unfinished tasks are dropped, and their devices are free for the next run."""
        import ray

        # Killed actors cannot remove their unfinished files.
        given_up = [actor.give_up.options(concurrency_group=_BESIDE).remote() for actor, _ in self._doing.values()]
        if given_up:
            ray.wait(given_up, num_returns=len(given_up), timeout=_PATIENCE_WITH_ENDING_S)
        for actor in [*self._opening.values(), *(actor for actor, _ in self._doing.values()), *self._idle]:
            ray.kill(actor)

    def _add_actor(self) -> None:
        actor = self._start()
        self._opening[actor.open.remote()] = actor

    def _keep_busy(self) -> bool:
        """Give a task to every idle actor; return False if nothing is left to do or to wait for."""
        while self._idle and (task := self._tasks.next()) is not None:
            self._on_start(task)
            actor = self._idle.pop()
            self._doing[actor.do.remote(task)] = actor, task
        if self._doing:
            return True
        # No actor is ready yet, so draw a task to find out whether one is left.
        return self._tasks.has_more()

    def _hear(self, awaited: Any) -> Iterator[Result]:
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError

        opened = self._opening.pop(awaited, None)
        actor, task = self._doing.pop(awaited, (opened, None))
        try:
            answer: _Answer = ray.get(awaited)
        except (RayActorError, OutOfMemoryError):
            # An actor that could not be reached may still be running.
            ray.kill(actor)
            yield from self._replace(task)
            return
        self._report_notes(answer)
        if answer.error is not None:
            raise answer.error
        self._idle.append(actor)
        if task is None:
            self._failed_starts = 0
        else:
            self._tasks.done(task)
            yield answer.result

    def _report_notes(self, answer: _Answer) -> None:
        for text, detail in answer.notes:
            if text not in self._said:
                self._said.add(text)
                self._say(text, detail=detail)

    def _replace(self, task: Task | None) -> Iterator[Result]:
        self._failed_starts += task is None
        if self._failed_starts >= _MOST_FAILED_STARTS:
            raise DeviceError(
                "Ray's actors end as they start",
                "they may run out of memory: try fewer --workers; each node needs omgsr-cli",
            )
        self._add_actor()
        if task is None:
            return
        if self._tasks.try_again(task):
            return
        hint = "it may run out of memory: try fewer --workers or less --memory"
        yield self._work.lost(task, DeviceError("its process ended twice", hint))


def _count_in_cluster(kind: str) -> int:
    """The number of "GPU" or "CPU" resources in the cluster."""
    import ray

    resources: Callable[[], dict[str, float]] = ray.cluster_resources
    return int(resources().get(kind, 0))


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the signal handlers at the end: those of Ray print a stack and abort, in Python and in C."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [(number, signal.getsignal(number)) for number in numbers]
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before:
                if handler is not None:
                    signal.signal(number, handler)


def _connect(address: str | None) -> bool:
    """Connect to the cluster or start Ray here; return whether Ray was started."""
    # Set this before Ray is imported, because it reports its use over the network otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return False
    own: dict[str, Any] = {}
    if address is None:
        own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        with _own_signals():
            # Without "local", Ray would join any cluster that it finds.
            ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except ConnectionError as error:
        raise DeviceError(
            f"--address {address}: there is no Ray cluster", "start one with ray start --head, or remove --address"
        ) from error
    return True
