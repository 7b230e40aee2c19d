"""Prevent two runs from writing to the same folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

__all__ = ["FolderLock"]

_held: set[Path] = set()


class FolderLock:
    """Lock a folder for one run. The system releases the lock when the process ends for any reason.

    It is a POSIX record lock, which loader workers do not inherit. On Windows, and on file systems without such locks,
    it only works between runs of the same process.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._file: Any = None

    def acquire(self, folder: Path) -> None:
        """Lock the folder.

        Raises:
            RuntimeError: another run, or another callback of this run, is writing to it.
        """
        folder = folder.resolve()
        if folder in _held:
            raise RuntimeError(f"expected one CheckpointSaver per folder, got two for {folder}. Use different folders")
        path = folder / ".lock"
        while True:
            file = path.open("a+")
            try:
                _lock(file)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                owner = file.read().strip()
                file.close()
                raise RuntimeError(
                    f"another run is writing to {folder} (process {owner or 'unknown'}). Wait for it, stop it, or use "
                    "another folder"
                ) from None
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
            file.close()  # Its owner has just removed it.
        with contextlib.suppress(OSError):  # The owner is only for the message.
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        self._folder, self._file = folder, file
        _held.add(folder)

    def release(self) -> None:
        """Release the folder if it is locked."""
        if self._folder is not None:
            _held.discard(self._folder)
            with contextlib.suppress(OSError):
                (self._folder / ".lock").unlink(missing_ok=True)
                self._file.close()
            self._folder = self._file = None


def _lock(file: Any) -> None:
    """Lock a file if the system supports it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:  # a file system without locks
        return
