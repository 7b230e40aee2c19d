"""Keep two runs from writing into one folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

__all__ = ["FolderLock"]

_held: set[Path] = set()


class FolderLock:
    """Holds a folder for one run. The system releases it when the process ends, however it ends.

    It is a POSIX record lock, which loader workers do not inherit. On Windows, and on file systems without such locks,
    only runs of the same process are kept apart.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._file: Any = None

    def acquire(self, folder: Path) -> None:
        """Take the folder.

        Raises:
            RuntimeError: another run, or another callback of this run, is writing to it.
        """
        folder = folder.resolve()
        if folder in _held:
            raise RuntimeError(f"two CheckpointSavers write to {folder}: give each a folder of its own")
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
                    f"another run is writing to {folder} (process {owner or 'unknown'}): wait for it, stop it, or use "
                    "another folder"
                ) from None
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
            file.close()  # Its owner has removed it just now.
        with contextlib.suppress(OSError):  # The name of the owner is not worth a run.
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        self._folder, self._file = folder, file
        _held.add(folder)

    def release(self) -> None:
        """Let the folder go, if it is held."""
        if self._folder is not None:
            _held.discard(self._folder)
            with contextlib.suppress(OSError):
                (self._folder / ".lock").unlink(missing_ok=True)
                self._file.close()
            self._folder = self._file = None


def _lock(file: Any) -> None:
    """Lock a file, where the system can do that."""
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
