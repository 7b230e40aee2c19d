"""Keep the gradients of an accumulation window where every graph finds them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Gradients"]


class Gradients:
    """Tensors for the gradients of a window, which is made of several batches.

    Args:
        parameters: the parameters of the optimizer.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters
        self._own: list[Tensor | None] = [torch.zeros_like(p) if p.requires_grad else None for p in parameters]

    def take(self) -> None:
        """Copy the gradients of a batch that opens a window, in the step that is recorded."""
        for number, parameter in enumerate(self._parameters):
            own = self._own[number]
            if parameter.grad is None:
                self._own[number] = None
            elif own is not None:
                own.copy_(parameter.grad)

    def show(self) -> None:
        """Make them the gradients of the parameters."""
        for own, parameter in zip(self._own, self._parameters, strict=True):
            parameter.grad = own

    def adopt(self) -> None:
        """Continue a window that an eager step has begun."""
        for own, parameter in zip(self._own, self._parameters, strict=True):
            if own is not None and parameter.grad is not None and parameter.grad is not own:
                own.copy_(parameter.grad)
            parameter.grad = own

    def are_shown(self) -> bool:
        """Return whether the parameters have these gradients, after a step was recorded."""
        return all(p.grad is own for own, p in zip(self._own, self._parameters, strict=True))

    def tensors(self) -> list[Tensor]:
        """Return the tensors."""
        return [own for own in self._own if own is not None]
