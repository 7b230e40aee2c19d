"""Record signals that stop a run, until the run can be saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["Signals"]

ASKING = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")

PERSON = 1.0
"""Seconds after which another Ctrl-C comes from a person who wants to stop at once. Launchers repeat sooner."""


class Signals:
    """Record the first signal. Later ones change nothing, except a Ctrl-C after a second, which acts at once.

    Attributes:
        received: the number of the first signal, 0 before it.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._process = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Handle the signals that this process does not ignore. Python allows it in the main thread only."""
        self.restore()
        self.received, self._process = 0, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for name in ASKING:
                number = getattr(signal, name, None)  # Windows lacks some.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP.
                    self._before[number] = signal.signal(number, self._note)

    def restore(self, keep: int = 0) -> None:
        """Restore the handlers of all signals except `keep`."""
        for number in [number for number in self._before if number != keep]:
            handler = self._before.pop(number)
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # A process that was forked from this one, and inherited the handler.
            self._act(number)
        elif not self.received:
            self.received, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > PERSON:
            self._act(number)

    def _act(self, number: int) -> None:
        """Raise the signal with its original handler."""
        self.restore()
        signal.raise_signal(number)
