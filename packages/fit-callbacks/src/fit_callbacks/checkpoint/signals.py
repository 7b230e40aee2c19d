"""Signals that ask a run to stop: noted by a handler, acted on where the run can be saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Signals"]

ASKING = ("SIGTERM", "SIGINT", "SIGUSR1")


class Signals:
    """Notes the first signal, and lets a second one do at once what it would have done.

    Attributes:
        received: the number of the first signal; 0 while there is none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals over. Python allows it in the main thread only; elsewhere, nothing happens."""
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            for name in ASKING:
                if hasattr(signal, name):  # Windows lacks some
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Give the signals back to whom they belonged."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = number
            return
        self.restore()
        os.kill(os.getpid(), number)
