"""Find out which process this is, and whether there are others to exchange values with."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from torch import distributed

__all__ = ["close_group", "gather", "has_process_group", "host_group", "rank_and_world_size"]

_closed: deque[Any] = deque(maxlen=4)


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


def close_group(group: Any) -> None:
    """Destroy a group that is not needed any more. Its memory is freed when four others have been closed.

    A thread of the group may still need Python's lock to free a tensor, and torch 2.6 waits for that thread with the
    lock held when the group is freed. By then its threads have long been idle.

    Args:
        group: one that `host_group` has returned, on each process.
    """
    distributed.destroy_process_group(group)
    _closed.append(group)


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
