"""Refuse a module whose weights do not exist yet."""

from __future__ import annotations

from itertools import chain

from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["refuse_lazy"]


def refuse_lazy(module: nn.Module, callback: str) -> None:
    """Check that each weight of a module has a shape, which in a lazy module follows from the first batch.

    Args:
        module: the module that a callback is about to copy.
        callback: its name, for the message.

    Raises:
        ValueError: a weight has none.
    """
    tensors = chain(module.named_parameters(), module.named_buffers())
    if names := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise ValueError(
            f"{callback} copies the weights when a run begins, but {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''} of the lazy model have no shape yet. Run it once before fit: "
            "model(input)"
        )
