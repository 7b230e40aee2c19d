"""Find the checkpoints in a folder, and move those of an earlier run."""

from __future__ import annotations

import shutil
from pathlib import Path

from .files import peek

__all__ = ["checkpoints", "clear_unused", "is_same", "make_folder", "name_of", "set_aside", "values_after"]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the latest first."""
    latest = [path for name in ("last.pt", "before-last.pt") if (path := folder / name).exists()]
    return latest + sorted(_kept_in(folder), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def is_same(folder: Path, other: Path) -> bool:
    """Return whether two paths are the same folder."""
    return folder.resolve() == other.resolve()


def name_of(epoch: int) -> str:
    """Return the file name of an epoch."""
    return f"epoch-{epoch:04d}.pt"


def set_aside(folder: Path) -> str | None:
    """Move the checkpoints of an earlier run to a new folder. Return its name, or None without checkpoints."""
    paths = checkpoints(folder)
    if not paths:
        return None
    number = 1
    while (aside := folder / f"previous-{number}").exists():
        number += 1
    aside.mkdir()
    for path in (*_folders(folder), *paths):  # Shards first: without a file that uses them, a run removes them.
        path.rename(aside / path.name)
    return aside.name


def make_folder(save_dir: Path) -> str:
    """Create a folder for shards that is not in use, and return its name."""
    numbers = [int(path.name.removeprefix("shards-")) for path in _folders(save_dir)]
    folder = save_dir / f"shards-{max(numbers, default=0) + 1:06d}"
    folder.mkdir()
    return folder.name


def clear_unused(save_dir: Path) -> None:
    """Remove the shards that no checkpoint in a folder uses. If one cannot be read, all are kept."""
    used = set()
    own = set(checkpoints(save_dir))
    for path in save_dir.glob("*.pt"):
        content = peek(path)
        if content is None and path in own:
            return
        if isinstance(content, dict) and "shards" in content:
            used.add(content["shards"]["folder"])
    for folder in _folders(save_dir):
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def values_after(epoch: int, monitor: str, folder: Path) -> list[tuple[float, int]]:
    """Return values and epochs of the checkpoints of later epochs in a folder."""
    kept = [content for path in _kept_in(folder) if (content := peek(path)) and content["epoch"] > epoch]
    values = [(content["monitor"], content["epoch"]) for content in kept if "monitor" in content]
    return [(v["value"], number) for v, number in values if v["name"] == monitor and v["value"] is not None]


def _kept_in(folder: Path) -> list[Path]:
    return [path for pattern in ("best.pt", "epoch-*.pt") for path in folder.glob(pattern)]


def _folders(save_dir: Path) -> list[Path]:
    return [path for path in save_dir.glob("shards-*") if path.name.removeprefix("shards-").isdigit()]
