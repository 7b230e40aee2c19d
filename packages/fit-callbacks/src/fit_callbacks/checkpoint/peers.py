"""Exchange values with the other processes of a run, on the CPU, so that nothing waits for an accelerator."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from fit_core import close_group
from torch import distributed

__all__ = ["Peers"]

T = TypeVar("T")


class Peers:
    """The processes of a run.

    Args:
        group: their process group, or None if this process is the only one.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self._asked: tuple[Any, torch.Tensor] | None = None

    def all(self, condition: bool) -> bool:
        """Return whether something is true on every rank."""
        return not self.highest(not condition)

    def highest(self, number: int) -> int:
        """Return the highest number of all ranks."""
        if self.group is None:
            return int(number)
        if self._asked is not None:
            self._asked[0].wait()
        highest = torch.tensor(int(number))
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=self.group)
        return int(highest)

    def highest_before(self, number: int) -> int:
        """Return the highest number that the ranks passed to the last call, 0 at first, without waiting for this call.

        A single process gets its number back.
        """
        if self.group is None:
            return number
        before = 0
        if self._asked is not None:
            work, highest = self._asked
            work.wait()
            before = int(highest)
        highest = torch.tensor(number)
        work = distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=self.group, async_op=True)
        self._asked = work, highest
        return before

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks on rank 0, and an empty list on the others."""
        if self.group is None:
            return [value]
        values: list[Any] | None = None
        if distributed.get_rank() == 0:
            values = [None] * distributed.get_world_size()
        distributed.gather_object(value, values, dst=0, group=self.group)
        return values or []

    def together(self, function: Callable[[], T]) -> T:
        """Call a function on every rank. Raise the error of the first rank that has one on all of them."""
        if self.group is None:
            return function()
        own: Exception | None = None
        try:
            result = function()
        except Exception as error:
            own = error
        errors: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(errors, own and _portable(own), group=self.group)
        first = next((rank for rank, error in enumerate(errors) if error), None)
        if first is not None:
            raise own if own and first == distributed.get_rank() else errors[first]
        return result

    def close(self) -> None:
        """Destroy the process group."""
        if self.group is not None:
            close_group(self.group)
        self.group = self._asked = None

    def on_rank_zero(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0. Return its result on every rank, or raise its error there."""
        if self.group is None:
            return function()
        box: list[Any] = [None, None]
        own: Exception | None = None
        if distributed.get_rank() == 0:
            try:
                box[0] = function()
            except Exception as error:
                own, box[1] = error, _portable(error)
        distributed.broadcast_object_list(box, src=0, group=self.group)
        if box[1] is not None:
            raise own or box[1]
        result: T = box[0]
        return result


def _portable(error: Exception) -> Exception:
    """Return an error that other processes can read."""
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy
