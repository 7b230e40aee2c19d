"""Signals that ask a launcher to stop: noted by a handler, and passed on to its processes."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["Signals"]

_ASKING = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGQUIT")

_PERSON = 1.0
"""Seconds after which another Ctrl-C is a person's, who wants the end at once."""


class Signals:
    """Note the first signal. Later ones change nothing, except for a Ctrl-C after a second: it raises at once.

    Python allows it in the main thread only. Signals that this process ignores stay ignored, as nohup wants it.

    Attributes:
        received (int): the number of the first signal; 0 while there is none.
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
