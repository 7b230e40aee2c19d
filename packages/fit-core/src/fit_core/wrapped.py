"""Know which modules exchange gradients between processes: those in DistributedDataParallel, and sharded ones."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor, nn

from .parameters import check_frozen_since_wrapped
from .sharded import Shards, reshard

__all__ = ["Wrapped"]


class Wrapped:
    """The modules of a run that exchange gradients, by what DistributedDataParallel and `fully_shard` have in common.

    Args:
        modules: the model, and the criterion if it is a module.

    Attributes:
        exchanges: whether there is one.
        is_sharded: whether `fully_shard` has split one.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._all = list(modules)
        self._shards = [shards for module in self._all if (shards := Shards(module))]
        self._parts: list[Any] = [*(module for module in self._all if hasattr(module, "no_sync")), *self._shards]
        self.exchanges, self.is_sharded = bool(self._parts), bool(self._shards)

    def no_sync(self) -> AbstractContextManager[Any]:
        """Return a context of steps that add up gradients on this process, and do not average them."""
        stack = ExitStack()
        for part in self._parts:
            stack.enter_context(part.no_sync())
        return stack

    def unreduced(self) -> list[Any]:
        """Return the gradients that sharded modules have not averaged yet."""
        return [gradient for shards in self._shards for gradient in shards.unreduced]

    def own_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that are not synchronized between processes."""
        apart = [part for part in self._parts if getattr(part, "broadcast_buffers", True) is False]
        return {f"{number}.{name}": b for number, part in enumerate(apart) for name, b in part.named_buffers()}

    def check_frozen(self) -> None:
        """Check that no parameter was frozen or unfrozen since the modules were wrapped.

        Raises:
            ValueError: one was.
        """
        check_frozen_since_wrapped(self._parts)

    def reshard(self) -> None:
        """Let sharded modules have their shards as parameters again, after a forward pass without backward."""
        for module in self._all if self.is_sharded else ():
            reshard(module)
