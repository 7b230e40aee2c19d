"""The checkpoints in a folder: which there are, which are kept, and where those of an earlier run go."""

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
    """Return the name under which an epoch is kept."""
    return f"epoch-{epoch:04d}.pt"


def set_aside(folder: Path) -> str | None:
    """Move the checkpoints of an earlier run into a folder of their own. Return its name, or None without any."""
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
    """Return values and epochs of what is kept in a folder from later epochs than one."""
    kept = [content for path in _kept_in(folder) if (content := peek(path)) and content["epoch"] > epoch]
    values = [(content["monitor"], content["epoch"]) for content in kept if "monitor" in content]
    return [(v["value"], number) for v, number in values if v["name"] == monitor and v["value"] is not None]


def _kept_in(folder: Path) -> list[Path]:
    return [path for pattern in ("best.pt", "epoch-*.pt") for path in folder.glob(pattern)]
