"""Write in a thread without losing errors."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

__all__ = ["Writer"]


class Writer:
    """Run one task at a time, here or in a thread. The next call raises the error of the thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def run(self, task: Callable[[], None], background: bool) -> None:
        """Wait for the last task, and start one."""
        self.wait()
        if not background:
            task()
            return
        self._thread = threading.Thread(target=self._try, args=(task,), name="checkpoint")
        self._thread.start()

    def warn(self) -> None:
        """Wait for the task, and warn about its error while another error is raised."""
        try:
            self.wait()
        except Exception as error:
            warnings.warn(f"{type(error).__name__}: {error}", stacklevel=2)

    def wait(self) -> None:
        """Wait for the task in the thread, and raise its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _try(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # It would not be seen here.
            self._error = error
