"""Provide several optimizers as one, such as Muon for the matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Optimizers"]


class Optimizers(torch.optim.Optimizer):
    """Combine several optimizers into one for a Runner, schedulers, callbacks and checkpoints.

    Its parameter groups are those of all optimizers, in order. In fp16 a gradient that overflows skips the step of all.

    Args:
        *optimizers: optimizers of torch, or with the same methods, over different parameters.

    Attributes:
        optimizers: the same, as a tuple.

    Raises:
        TypeError: one is not an optimizer.
        ValueError: there is none, or two have a parameter in common.

    Examples:
        >>> matrices = [p for p in model.body.parameters() if p.ndim == 2]
        >>> others = [p for p in model.parameters() if all(p is not m for m in matrices)]
        >>> optimizer = Optimizers(torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=3e-4))
        >>> Runner(model, optimizer, criterion).fit(loader)
    """

    def __init__(self, *optimizers: Any) -> None:
        for optimizer in optimizers:
            if not all(hasattr(optimizer, name) for name in ("param_groups", "step", "state_dict", "state")):
                hint = ". Write Optimizers(first, second)" if isinstance(optimizer, (list, tuple)) else ""
                raise TypeError(f"expected optimizers, got {type(optimizer).__name__}{hint}")
        if not optimizers:
            raise ValueError("expected optimizers, got none. Write Optimizers(first, second)")
        self.optimizers = optimizers
        held: set[int] = set()
        for number, optimizer in enumerate(optimizers):
            own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if both := len(own & held):
                raise ValueError(
                    f"expected optimizers with different parameters, got {both} parameters in optimizer {number}, "
                    f"{type(optimizer).__name__}, that another one has too. Pass each parameter to one optimizer"
                )
            held |= own
        common = set.intersection(*(set(getattr(optimizer, "defaults", ())) for optimizer in optimizers))
        defaults = {name: optimizers[0].defaults[name] for name in optimizers[0].defaults if name in common}
        super().__init__(self.param_groups, defaults if common else {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers. Changing one changes it in its optimizer."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if groups:  # torch's constructor sets an empty list
            raise AttributeError(
                "expected a change in one of the optimizers, got one of all. Set optimizers[0].param_groups"
            )

    @property
    def state(self) -> Any:
        """The states of all optimizers, by parameter."""
        return _States(self.optimizers)

    @state.setter
    def state(self, state: Any) -> None:
        if state:
            raise AttributeError("expected a change in one of the optimizers, got one of all. Set optimizers[0].state")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a group that none of the optimizers has.

        Raises:
            ValueError: the group does not belong to one of the optimizers.
        """
        if not any(param_group is group for group in self.param_groups):
            raise ValueError(
                "expected a group of one of the optimizers, got a new one. Call optimizers[0].add_param_group(group)"
            )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all optimizers, in order. A closure is called once, before them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all optimizers."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def train(self) -> None:
        """Put the optimizers that have modes, such as schedule-free ones, into training mode."""
        for optimizer in self.optimizers:
            if hasattr(optimizer, "train"):
                optimizer.train()

    def eval(self) -> None:
        """Put them into evaluation mode."""
        for optimizer in self.optimizers:
            if hasattr(optimizer, "eval"):
                optimizer.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the optimizers, with the names of their classes."""
        return {
            "classes": [type(optimizer).__name__ for optimizer in self.optimizers],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of the optimizers.

        Raises:
            ValueError: the classes differ from the saved ones.
        """
        own = [type(optimizer).__name__ for optimizer in self.optimizers]
        if own != state_dict["classes"]:
            raise ValueError(
                f"expected Optimizers({', '.join(state_dict['classes'])}) as in the state, got "
                f"Optimizers({', '.join(own)}). Create the same optimizers in the same order"
            )
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["optimizers"])  # type: ignore[misc]  # a new object, made by pickle

    def __repr__(self) -> str:
        return f"Optimizers({', '.join(map(repr, self.optimizers))})"


class _States(MutableMapping[Any, Any]):
    """Combine the states of several optimizers into one dict, by parameter."""

    def __init__(self, optimizers: tuple[Any, ...]) -> None:
        self._optimizers = optimizers

    def __getitem__(self, key: Any) -> Any:
        return self._state_with(key)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._state_with(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._state_with(key)[key]

    def __iter__(self) -> Iterator[Any]:
        return (key for optimizer in self._optimizers for key in optimizer.state)

    def __len__(self) -> int:
        return sum(len(optimizer.state) for optimizer in self._optimizers)

    def __contains__(self, key: object) -> bool:
        return any(key in optimizer.state for optimizer in self._optimizers)

    def clear(self) -> None:
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def _state_with(self, key: Any) -> Any:
        for optimizer in self._optimizers:
            if key in optimizer.state or _has(optimizer, key):
                return optimizer.state
        raise KeyError(key)


def _has(optimizer: Any, parameter: Tensor) -> bool:
    return any(parameter is own for group in optimizer.param_groups for own in group["params"])
