"""Let several processes stop after the same batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import distributed

from .callback import Callback
from .processes import close_group, host_group
from .state import RunnerState

__all__ = ["Vote"]

BATCH_HOOKS = ("on_batch_begin", "on_after_backward", "on_before_step", "on_batch_end", "on_checkpoint")


class Vote:
    """Make `should_stop` the same on all processes, or those that stay in the loop would wait forever.

    Nothing is exchanged if no callback of any process mentions `should_stop` in its code. Otherwise the processes
    vote after each epoch, and after each training batch and each validation if such a callback has a hook of batches.
    Every process creates the vote when the run starts.

    Args:
        callbacks: the callbacks of the run on this process. Those with `stops_together = True` set `should_stop` on
            all processes alike and do not vote, except in validation, where processes have different batches.
        device: the device on which the processes exchange tensors.

    Attributes:
        is_needed: whether the processes vote after each epoch.
        is_needed_in_batches: whether they vote after each training batch.
        is_needed_in_validation: whether they vote after each validation.
    """

    def __init__(self, callbacks: Iterable[Callback], device: torch.device) -> None:
        setters = [callback for callback in callbacks if _mentions_should_stop(callback)]
        voters = [callback for callback in setters if may_stop(callback)]
        needed = torch.tensor([len(voters), *map(_count_in_batches, (voters, setters))], device=device)
        distributed.all_reduce(needed, distributed.ReduceOp.MAX)
        counts: list[int] = needed.tolist()
        self.is_needed, self.is_needed_in_batches, self.is_needed_in_validation = (count > 0 for count in counts)
        # With gloo the vote stays on the host and does not wait for the device.
        some = self.is_needed or self.is_needed_in_validation
        self._group: Any = host_group() if some else None

    def take(self, state: RunnerState) -> None:
        """Set `should_stop` and the status on all processes if one of them has set it."""
        wish = torch.tensor(state.should_stop + (state.should_stop and state.status == "interrupted"))
        distributed.all_reduce(wish, distributed.ReduceOp.MAX, group=self._group)
        state.should_stop = bool(wish)
        if wish == 2:
            state.status = "interrupted"

    def take_in_training(self, state: RunnerState) -> None:
        """Do so after a training batch. In validation the processes may have different numbers of batches."""
        if state.is_train:
            self.take(state)

    def close(self) -> None:
        """Destroy the process group."""
        if self._group is not None:
            close_group(self._group)
            self._group = None


def may_stop(callback: Callback) -> bool:
    """Return whether a callback may set `should_stop` on this process alone."""
    return not getattr(callback, "stops_together", False) and _mentions_should_stop(callback)


def _count_in_batches(callbacks: list[Callback]) -> int:
    return sum(
        any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in BATCH_HOOKS)
        for callback in callbacks
    )


def _mentions_should_stop(callback: Callback) -> bool:
    """Return whether `should_stop` is in the code of a callback: its methods, or functions passed to it."""
    kinds = [kind for kind in type(callback).__mro__ if kind not in (Callback, object)]
    values = [value for holder in (*kinds, callback) for value in vars(holder).values()]
    functions = [getattr(value, "__func__", value) for value in values]  # also static and class methods
    return any(
        "should_stop" in (*code.co_names, *code.co_consts)
        for function in functions
        if isinstance(function, FunctionType)
        for code in _with_nested(function.__code__)
    )


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)
