"""Find the checkpoint to resume from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fit_core import RunnerState

from ..ranks import print_line
from .files import newest_whole
from .folder import checkpoints, is_same, set_aside

__all__ = ["find"]


def find(folder: Path, resume: bool | str | Path, state: RunnerState) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint to resume from, or None. Move those of another run in the folder out of the way.

    Args:
        folder: where the run saves.
        resume: the argument of `CheckpointSaver`.
        state: the state of the run.

    Raises:
        FileNotFoundError: there is none where it should be.
    """
    if resume is True or resume == "auto":
        paths = checkpoints(folder)
        if not paths and resume is True:
            raise FileNotFoundError(
                f'expected a checkpoint in {folder} to resume from, got none. Pass resume="auto" to start from scratch'
            )
        if not paths:
            print_line(state, f"CheckpointSaver: no checkpoint in {folder}, starting from scratch")
        return newest_whole(paths) if paths else None
    found = None
    if resume is not False:
        source = Path(resume)
        paths = checkpoints(source) if source.is_dir() else [source]
        if not paths or not paths[0].exists():
            raise FileNotFoundError(
                f"expected a checkpoint to resume from, got {source}, which does not exist. resume=True resumes the "
                f"newest in {folder}"
            )
        found = newest_whole(paths)
        if is_same(found[0].parent, folder):
            return found
    if name := set_aside(folder):
        print_line(state, f"CheckpointSaver: moved the checkpoints of an earlier run in {folder} to {name}")
    return found
