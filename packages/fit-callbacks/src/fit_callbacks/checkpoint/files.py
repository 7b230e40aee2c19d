"""One checkpoint, one file: written so that a crash leaves the old one or the new one, read only when it is whole."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["CheckpointError", "add_name", "copy_to_cpu", "find_damage", "read", "sync_folder", "write"]


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says why, and what there still is."""


def write(content: Mapping[str, Any], part: Path) -> None:
    """Write a checkpoint under a passing name, force it to the disk, and read it back.

    Raises:
        CheckpointError: the disk is full, or the file did not come out as it went in. Nothing is left of it then.
    """
    try:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if problem := find_damage(part):
            raise OSError(f"read back, {problem}")
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        needed = sum(tensor.nbytes for tensor in _tensors(content)) / 1e6
        free = shutil.disk_usage(part.parent).free / 1e6
        raise CheckpointError(
            f"cannot save a checkpoint in {part.parent}: {error}. It needs {needed:.1f} MB, {free:.1f} MB are free; "
            "the checkpoints before it are intact"
        ) from error


def add_name(source: Path, target: Path) -> None:
    """Give a file one more name. What had that name goes; there is no moment without the one or the other."""
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
    with contextlib.suppress(OSError, AttributeError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find_damage(path: Path) -> str | None:
    """What is wrong with a file, by the checksums of all its records; None when it is whole."""
    try:
        with zipfile.ZipFile(path) as records:
            bad = records.testzip()
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        return f"it is no complete checkpoint ({error})"
    return f"the checksum of its record {bad} is wrong" if bad else None


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, after all its checksums have been compared. Runs no code that may be in it.

    Raises:
        CheckpointError: the file is damaged, or holds something else than tensors, numbers and strings.
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if problem := find_damage(path):
        raise CheckpointError(f"{path} cannot be used: {problem}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} cannot be used: it holds more than tensors, numbers and strings") from error
    except Exception as error:  # there are many ways to fail
        raise CheckpointError(f"{path} cannot be used: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} cannot be used: it holds a {type(content).__name__} and not a run")
    return content


def newest_whole(paths: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """The first of several checkpoints that can be read; a warning names those that cannot.

    Raises:
        CheckpointError: none can.
    """
    problems = []
    for path in paths:
        try:
            content = read(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{'; '.join(problems)}; {path} is used in its place", stacklevel=2)
        return path, content
    raise CheckpointError(f"no checkpoint can be used: {'; '.join(problems)}")


def copy_to_cpu(value: Any) -> Any:
    """A copy of a nested state on the CPU, which later steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copy_to_cpu(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copy_to_cpu(part) for part in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
