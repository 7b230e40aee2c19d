"""Notice random numbers that a graph would not draw as the step does."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor

__all__ = ["RandomWatch"]


class RandomWatch:
    """Look at the random generators while a step runs.

    Attributes:
        reason: why the step cannot be a graph, None if nothing was found.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __enter__(self) -> RandomWatch:
        self._before = _states()
        self._stack = ExitStack()
        for module in (torch, torch.cuda):
            read, write, seed = module.get_rng_state, module.set_rng_state, module.manual_seed
            self._stack.enter_context(mock.patch.object(module, "set_rng_state", self._noting(write, read)))
            self._stack.enter_context(mock.patch.object(module, "manual_seed", self._noting(seed)))
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()
        if self._before != _states():
            self.reason = "the step draws random numbers from Python or NumPy, which a graph would repeat"

    def _noting(self, function: Callable[..., Any], read: Callable[..., Tensor] | None = None) -> Callable[..., Any]:
        """Return a function that notes its calls, unless the state that it sets is already there."""

        def noted(*arguments: Any, **options: Any) -> Any:
            if read is None or not torch.equal(read(*arguments[1:], **options), arguments[0]):
                self.reason = (
                    "the step seeds random numbers, or draws some twice, as checkpoint does for dropout. "
                    "A graph would draw others"
                )
            return function(*arguments, **options)

        return noted


def _states() -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return random.getstate()
    _, numbers, place, *_ = numpy.random.get_state(legacy=True)
    return random.getstate(), numbers.tobytes(), place
