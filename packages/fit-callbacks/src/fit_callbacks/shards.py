"""Work with the parameters of a model that torch's `fully_shard` has split between processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ShardedAverage", "is_sharded", "local", "whole"]


def is_sharded(tensor: Any) -> bool:
    """Return whether each process has a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Any:
    """Return the part of a tensor on this process."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Any:
    """Return the whole tensor. All processes have to call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


class ShardedAverage(nn.Module):
    """Other weights for a sharded model, which cannot be copied. A call puts them into the model for its forward pass.

    Args:
        model: the sharded model. The weights start as a copy of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._of = (model,)  # A tuple keeps it from becoming a submodule.
        for part in self._sharded():
            part.reshard()
        weights = _copy_of(model, {})
        self._parameters, self._buffers, self._modules = weights._parameters, weights._buffers, weights._modules
        self._non_persistent_buffers_set = weights._non_persistent_buffers_set

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run the model with these weights, and with its own buffers."""
        with self._exchanged():
            return self._of[0](*inputs, **kwargs)

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for part in self._sharded():
            part.reshard()
        for own, other in zip(self.parameters(), self._of[0].parameters(), strict=True):
            ours, theirs = local(own), local(other)
            kept = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(kept)

    def _sharded(self) -> list[Any]:
        return [part for part in self._of[0].modules() if hasattr(part, "reshard")]


def _copy_of(module: nn.Module, seen: dict[Any, Any]) -> nn.Module:
    """Return a module of modules without code, with copies of parameters and buffers under the same names."""
    if module in seen:
        known: nn.Module = seen[module]
        return known

    def copied(tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        if tensor not in seen:
            clone = tensor.detach().clone()
            seen[tensor] = nn.Parameter(clone, requires_grad=False) if isinstance(tensor, nn.Parameter) else clone
        return seen[tensor]

    copy = seen[module] = nn.Module()
    copy._parameters = {name: copied(parameter) for name, parameter in module._parameters.items()}
    copy._buffers = {name: copied(buffer) for name, buffer in module._buffers.items()}
    copy._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    copy._modules = {name: child and _copy_of(child, seen) for name, child in module._modules.items()}
    return copy
