"""Train a model that torch's `fully_shard` has split between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

__all__ = ["Shards", "in_step", "is_sharded", "reshard"]


class Shards:
    """The sharded parts of a module, by the names that DistributedDataParallel has for the same things.

    Args:
        module: a module of which `fully_shard` has sharded submodules.

    Attributes:
        broadcast_buffers: False, since each process keeps its own buffers.
        unreduced: the gradients of an accumulation window that are not averaged yet, one per sharded parameter.
    """

    broadcast_buffers = False

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parts = _parts(module)
        groups = [group for part in self._parts for group in _groups(part)]
        self.unreduced = [Unreduced(parameter) for group in groups for parameter in group.fsdp_params]

    def __bool__(self) -> bool:
        return bool(self._parts)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Add up gradients on this process, and do not average them."""
        for part in self._parts:
            part.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for part in self._parts:
                part.set_requires_gradient_sync(True, recurse=False)

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Return the buffers of the module."""
        return self._module.named_buffers()


class Unreduced:
    """The gradient of a whole parameter on this process, which FSDP keeps out of `parameter.grad`."""

    def __init__(self, parameter: Any) -> None:
        self._parameter = parameter
        self.device = parameter.device

    @property
    def whole(self) -> Any:
        """The whole parameter, which is in the module during forward. None before the first."""
        return getattr(self._parameter, "_unsharded_param", None)

    @property
    def grad(self) -> Tensor | None:
        """The gradient so far."""
        gradient: Tensor | None = self._parameter.unsharded_accumulated_grad
        return gradient if gradient is not None or self.whole is None else self.whole.grad

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        self._parameter.unsharded_accumulated_grad = gradient
        if self.whole is not None:
            self.whole.grad = None


def is_sharded(module: Any) -> bool:
    """Return whether `fully_shard` has split a part of a module."""
    return bool(_parts(module))


def reshard(module: Any) -> None:
    """Let a sharded module have its shards as parameters again. A forward pass without backward leaves whole ones."""
    for part in _parts(module):
        part.reshard()


def in_step(
    batches: Iterable[Any], again: Callable[[], None], stops: Callable[[], bool], device: torch.device
) -> Iterator[Any]:
    """Yield batches while any process has some, since all take part in each forward pass of a sharded model.

    A process that has had all of its batches repeats the last, which is not counted.

    Args:
        batches: those of this process.
        again: runs the last batch again.
        stops: whether this process wants to stop. Then all stop after the same batch.
        device: the device on which the processes exchange numbers.

    Raises:
        ValueError: a process does not have a batch at all, while others do.
    """
    batches, size, is_first = iter(batches), distributed.get_world_size(), True
    while True:
        batch = next(batches, _END)
        counts = torch.tensor([batch is not _END, stops()], dtype=torch.long, device=device)
        distributed.all_reduce(counts)
        having, stopping = counts.tolist()
        if not having or stopping:
            return
        if is_first and having < size:
            raise ValueError(
                f"expected a batch on every process to run a sharded model, got none on {size - having} of {size}. "
                "Use more samples, or fit_distributed.shard(loader, pad=True)"
            )
        is_first = False
        if batch is _END:
            again()
        else:
            yield batch


_END = object()


def _parts(module: Any) -> list[Any]:
    """Return the submodules that `fully_shard` was called on."""
    parts = module.modules() if isinstance(module, nn.Module) else ()
    return [part for part in parts if hasattr(part, "set_requires_gradient_sync")]


def _groups(part: Any) -> list[Any]:
    state = part._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [state._fsdp_param_group] if state._fsdp_param_group else []  # torch 2.11 and older
