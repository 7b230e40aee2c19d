"""Find out which process this is, and whether there are others to exchange values with."""

from __future__ import annotations

import os

from torch import distributed

__all__ = ["has_process_group", "rank_and_world_size"]


def has_process_group() -> bool:
    """Return whether this process is in a process group, with which it can exchange values."""
    return distributed.is_available() and distributed.is_initialized()


def rank_and_world_size() -> tuple[int, int]:
    """Return ``(rank, world_size)`` of the process group, or else of the launcher's environment."""
    if has_process_group():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
