"""Check the paths that callbacks write to."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

__all__ = ["local_folder", "local_path"]


def local_path(name: str, value: Any) -> Path:
    """Return a path of this machine, with `~` expanded.

    Args:
        name: what to call the argument in the message.
        value: what was passed for it.

    Raises:
        TypeError: it is not a string or a path.
        ValueError: it is empty, too long, below a file, or the address of a remote store.
    """
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f'expected {name} to be a path such as "runs/a", got {value!r}')
    text = os.fspath(value)
    if not text.strip():
        raise ValueError(f'expected {name} to be a path such as "runs/a", got an empty one')
    if found := re.match(r"([a-z][a-z0-9+.-]+):/", text, re.IGNORECASE):
        raise ValueError(
            f"expected {name} to be a folder of this machine, got {text!r}. Write to a local folder, and copy it to "
            f"{found[1]} in a callback's on_checkpoint or after the run, or mount the store"
        )
    path = Path(text).expanduser()
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"expected {name} to fit the file system, got a part that is too long: {text!r}") from None
    # "." and "/" do not have a parent.
    _check_folder(name, text, next((parent for parent in path.parents if parent.exists()), path))
    return path


def local_folder(name: str, value: Any) -> Path:
    """Return a path of this machine that is a folder, or can become one. See `local_path`."""
    path = local_path(name, value)
    if path.exists():
        _check_folder(name, str(value), path)
    return path


def _check_folder(name: str, text: str, path: Path) -> None:
    if path.is_dir():
        return
    if text == str(path):
        raise ValueError(f"expected {name} to be a folder, got the file {text!r}")
    raise ValueError(
        f"expected {name} to be in a folder, got {text!r}, where {str(path)!r} is a file. Choose another path"
    )
