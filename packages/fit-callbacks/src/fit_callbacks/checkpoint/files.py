"""Write a checkpoint file so that a crash leaves the old one or the new one, and read only complete files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .content import size_of, why_not_loadable
from .shard_files import damage_of_shards
from .sharded import fill

__all__ = [
    "CheckpointError",
    "add_name",
    "cannot_save",
    "explained",
    "find_damage",
    "fingerprint",
    "newest_whole",
    "peek",
    "read",
    "read_file",
    "read_same",
    "sync_folder",
    "write",
]


class CheckpointError(RuntimeError):
    """Raised when a checkpoint could not be written or read. The message says why, and which ones remain."""


def write(content: Mapping[str, Any], part: Path) -> None:
    """Write a checkpoint under a temporary name, force it to the disk, and load it again without reading its tensors.

    Raises:
        OSError: the file differs from its content.
    """
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    if problem := find_damage(part):
        raise OSError(f"read back, {problem}")
    try:
        torch.load(part, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # Some file systems cannot map files.
        torch.load(part, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def explained(content: Mapping[str, Any], part: Path) -> Iterator[None]:
    """Explain why a checkpoint could not be written, and remove the partial file.

    Raises:
        TypeError: it contains something that cannot be loaded again. The message names its place.
        CheckpointError: the disk is full, or the folder is gone.
    """
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if reason := why_not_loadable(content):
            raise TypeError(reason) from error
        raise cannot_save(part.parent, error, size_of(content)) from error


def cannot_save(folder: Path, error: Exception, size: int) -> CheckpointError:
    """Return the error that explains why a checkpoint of this size could not be written."""
    if not folder.exists():
        return CheckpointError(
            f"cannot save a checkpoint in {folder}: the folder has been moved or deleted. Create it again"
        )
    free = shutil.disk_usage(folder).free / 1e6
    return CheckpointError(
        f"cannot save a checkpoint in {folder}: {error}. It needs {size / 1e6:.1f} MB, {free:.1f} MB are free. "
        "The checkpoints before it are intact"
    )


def add_name(source: Path, target: Path) -> None:
    """Add a name to a file, and replace the file that had this name. At any moment one of them exists."""
    passing = target.with_name(f".{target.name}.link")
    passing.unlink(missing_ok=True)
    try:
        os.link(source, passing)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, passing)
        with passing.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(passing, target)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    with contextlib.suppress(OSError, AttributeError):  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find_damage(path: Path) -> str | None:
    """Return the damage of a file, found by the checksums of all its records, or None if it is complete."""
    try:
        with zipfile.ZipFile(path) as records:
            bad = records.testzip()
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        return f"it is not a complete checkpoint ({error})"
    return f"the checksum of its record {bad} is wrong" if bad else None


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint to the CPU, after comparing all its checksums. Code in it is not executed.

    The tensors of a sharded model are put together, on a single process too, so that
    `torch.save(read("runs/a/best.pt"), "whole.pt")` makes it a plain file.

    Raises:
        CheckpointError: the file or its shards are damaged, or contain something else than tensors, numbers and
            strings.
        FileNotFoundError: the file does not exist.
    """
    return fill(read_file(Path(path)), Path(path))


def read_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint, with empty tensors on the meta device in place of sharded ones, whose checksums are compared.

    Raises:
        CheckpointError: the file is damaged.
        FileNotFoundError: there is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"expected a checkpoint, got {path}, which does not exist")
    if problem := find_damage(path):
        raise CheckpointError(f"{path} cannot be used: {problem}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} cannot be used: it contains more than tensors, numbers and strings") from error
    except Exception as error:  # it can fail in many ways
        raise CheckpointError(f"{path} cannot be used: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or "format" not in content:
        load = f". To start from these weights, call model.load_state_dict(torch.load({str(path)!r})) before fit"
        hint = load if _is_weights(content) else ""
        raise CheckpointError(f"{path} cannot be used: it contains a {type(content).__name__} and not a run{hint}")
    if problem := damage_of_shards(path, content):
        raise CheckpointError(f"{path} cannot be used: {problem}")
    return content


def _is_weights(content: Any) -> bool:
    parts = content.values() if isinstance(content, dict) else ()
    return bool(parts) and all(isinstance(part, torch.Tensor) for part in parts)


def peek(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint without reading its tensors, or None if that fails."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content
    except Exception:  # It is not needed.
        return None


def fingerprint(path: Path) -> str:
    """Return a hash of the checksums of all records of a checkpoint."""
    with zipfile.ZipFile(path) as records:
        marks = [(record.filename, record.CRC, record.file_size) for record in records.infolist()]
    return hashlib.sha256(repr(marks).encode()).hexdigest()


def read_same(path: Path, mark: str) -> dict[str, Any] | None:
    """Read a checkpoint that another process has checked. Return None if it is not the same here, or cannot be read."""
    try:
        if fingerprint(path) == mark:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return content
    except Exception:  # Then the other process sends it.
        pass
    return None


def newest_whole(paths: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """Return the first of several checkpoints that can be read. A warning names those that cannot.

    Raises:
        CheckpointError: all of them are damaged.
    """
    problems = []
    for path in paths:
        try:
            content = read_file(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{'. '.join(problems)}. Using {path} instead", stacklevel=2)
        return path, content
    raise CheckpointError(f"no checkpoint can be used. {'. '.join(problems)}")
