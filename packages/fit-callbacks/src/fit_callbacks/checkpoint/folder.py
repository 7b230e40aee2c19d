"""Find the checkpoints in a folder, and move those of an earlier run."""

from __future__ import annotations

from pathlib import Path

from .files import peek

__all__ = ["checkpoints", "is_same", "name_of", "set_aside", "values_after"]


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
    for path in paths:
        path.rename(aside / path.name)
    return aside.name


def values_after(epoch: int, monitor: str, folder: Path) -> list[tuple[float, int]]:
    """Return values and epochs of the checkpoints of later epochs in a folder."""
    kept = [content for path in _kept_in(folder) if (content := peek(path)) and content["epoch"] > epoch]
    values = [(content["monitor"], content["epoch"]) for content in kept if "monitor" in content]
    return [(v["value"], number) for v, number in values if v["name"] == monitor and v["value"] is not None]


def _kept_in(folder: Path) -> list[Path]:
    return [path for pattern in ("best.pt", "epoch-*.pt") for path in folder.glob(pattern)]
