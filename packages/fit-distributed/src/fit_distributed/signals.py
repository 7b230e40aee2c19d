"""Handle signals that stop a launcher, and pass them on to its processes."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["Signals"]

_ASKING = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGQUIT")

_PERSON = 1.0
"""Seconds after which another Ctrl-C comes from a person who wants to stop at once."""


class Signals:
    """Record the first signal. Later ones change nothing, except for a Ctrl-C after a second: it raises at once.

    Python allows it in the main thread only. Signals that this process ignores stay ignored, as under nohup.

    Attributes:
        received (int): the number of the first signal, 0 before it.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in _ASKING:
                number = getattr(signal, name, None)  # Windows lacks some.
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _PERSON:
            raise KeyboardInterrupt
