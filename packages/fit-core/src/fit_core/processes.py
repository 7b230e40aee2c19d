"""Find out which process this is, and whether there are others to exchange values with."""

from __future__ import annotations

import os
from typing import Any

from torch import distributed

__all__ = ["gather", "has_process_group", "host_group", "rank_and_world_size"]


def has_process_group() -> bool:
    """Return whether this process is in a process group, with which it can exchange values."""
    return distributed.is_available() and distributed.is_initialized()


def rank_and_world_size() -> tuple[int, int]:
    """Return `(rank, world_size)` of the process group, or else of the launcher's environment."""
    if has_process_group():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def host_group() -> Any:
    """Return a new group of all processes that exchanges values on the CPU, with the timeout of the process group.

    Without a timeout of its own, a group waits half an hour for a process or a machine that is gone.
    """
    world: Any = distributed.group.WORLD
    options = getattr(world._get_backend(world._device_types[0]), "options", None)
    return distributed.new_group(backend="gloo", timeout=getattr(options, "_timeout", None))


def gather(call: str, value: Any) -> list[Any]:
    """Return the values of all processes, by rank.

    Args:
        call: where in the program this is, to be compared with where the others are.
        value: that of this process.

    Raises:
        RuntimeError: another process is in another call.
    """
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, (call, value))
    calls = [entry[0] if isinstance(entry, tuple) and len(entry) == 2 else "elsewhere" for entry in gathered]
    if any(other != call for other in calls):
        places = ", ".join(f"rank {rank} at {other}" for rank, other in enumerate(calls))
        raise RuntimeError(
            f"the processes are in different calls: {places}. Make the same calls in the same order on every process. "
            "fit and evaluate exchange values, so do not call them on rank 0 alone"
        )
    return [entry[1] for entry in gathered]
