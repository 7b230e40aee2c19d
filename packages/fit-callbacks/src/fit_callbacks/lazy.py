"""Refuse a module whose weights do not exist yet."""

from __future__ import annotations

from itertools import chain

from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["refuse_lazy"]


def refuse_lazy(module: nn.Module, user: str, advice: str = "Run it once before fit: model(input)") -> None:
    """Check that each weight of a module has a shape, which in a lazy module follows from the first batch.

    Args:
        module: the module whose weights are needed.
        user: what needs them, for the message.
        advice: what to do.

    Raises:
        ValueError: a weight has none.
    """
    tensors = chain(module.named_parameters(), module.named_buffers())
    if names := [name for name, tensor in tensors if is_lazy(tensor)]:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"{user} expected a model with weights, got a lazy one: {shown} do not have a shape yet. {advice}"
        )
