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
        self._is_known = False

    def take(self) -> None:
        """Copy the gradients of a batch that opens a window, in the step that is recorded."""
        self._learn()
        for own, parameter in zip(self._own, self._parameters, strict=True):
            if own is not None and parameter.grad is not None:
                own.copy_(parameter.grad)

    def show(self) -> None:
        """Make them the gradients of the parameters."""
        for own, parameter in zip(self._own, self._parameters, strict=True):
            parameter.grad = own

    def are_shown(self) -> bool:
        """Return whether they still are the gradients of the parameters."""
        return all(parameter.grad is own for own, parameter in zip(self._own, self._parameters, strict=True))

    def adopt(self) -> None:
        """Continue a window that an eager step has begun."""
        self._learn()
        for own, parameter in zip(self._own, self._parameters, strict=True):
            if own is not None and parameter.grad is not None and parameter.grad is not own:
                own.copy_(parameter.grad)
                parameter.grad = own

    def match(self) -> bool:
        """Return whether the gradients of an eager step are those of the same parameters."""
        pairs = zip(self._own, self._parameters, strict=True)
        return not self._is_known or all((own is None) == (p.grad is None) for own, p in pairs)

    def _learn(self) -> None:
        """Note which parameters get a gradient.

        Raises:
            RuntimeError: they are others than in another batch.
        """
        if not self._is_known:
            self._is_known = True
            self._own = [p.grad if p.grad is None else own for own, p in zip(self._own, self._parameters, strict=True)]
        if not self.match():
            raise RuntimeError("the parameters that get a gradient differ between the batches of a window")

    def tensors(self) -> list[Tensor]:
        """Return the tensors."""
        return [own for own in self._own if own is not None]
