"""Ctrl-C and SIGTERM as a wish that the trainer grants at the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopWish:
    """Remembers the first signal while it is entered; a second one of the same kind has its usual effect.

    Outside of the main thread, where Python handles no signals, it hears none.

    Attributes:
        signal: its number, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._hear) for kind in _WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watched, handler in self._before.items():
            signal.signal(watched, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number
        heard = signal.Signals(number)
        signal.signal(heard, self._before[heard])
