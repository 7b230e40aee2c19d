"""Provide the base classes of metrics: a name, a direction, a repr, and sums on the device."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Any, TypeVar

import torch
from fit_core import Metric, has_process_group
from torch import Tensor, distributed

from .dtypes import is_missing

__all__ = ["BaseMetric", "SumMetric"]

Self = TypeVar("Self", bound="SumMetric")

PLAIN = (bool, int, float, str, type(None))


class BaseMetric(Metric):
    """Base of all metrics of this package: name, direction and repr."""

    name: str
    """The name in the logs. You may change it."""
    higher_is_better: bool | None = None
    """Whether a larger value is better. None if a metric cannot be better or worse."""
    capturable: bool = False
    """Whether `update` changes nothing but tensors, in place, so that it can be part of a CUDA graph."""

    def __repr__(self) -> str:
        """Return the call that makes such a metric, with the arguments that are not the defaults. Read no tensor."""
        values: list[str] = []
        shown: list[str] = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if parameter.kind is parameter.VAR_POSITIONAL and isinstance(value, tuple) and value:
                shown = [*values, *map(repr, value)]  # The arguments before them are positional too.
            elif isinstance(value, PLAIN):
                values.append(repr(value))
                is_default = value == parameter.default or (name == "name" and value == self.default_name())
                if not is_default:
                    shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def default_name(self) -> str:
        """Return the name of a metric that is made without `name=`."""
        return type(self).__name__


class SumMetric(BaseMetric):
    """Base of metrics that are a formula over sums. They are exact on any split of the data and number of processes.

    A subclass names its sums, adds to them in `update` and divides in `compute`. Set `higher_is_better` to True
    or False, so that callbacks can find the best epoch.

    `fit_core.Runner` moves a metric to the model's device, and calls `update` without gradients. In a
    hand-written loop, move it like the model, and `detach()` what you add to a floating sum. The metrics of this
    package detach it themselves.

    Args:
        name: the name in the logs. It becomes an attribute, which you may change.
        **sums: the dtype of each sum, or a tuple of the dtype and its sizes. Each becomes an attribute of the metric,
            a tensor of zeros. The sizes must not depend on the data, because a process without any batches takes part
            in `all_reduce` too. On Apple's MPS, which does not have float64, float32 is used instead.

    Examples:
        >>> class ErrorRate(SumMetric):
        ...     higher_is_better = False
        ...
        ...     def __init__(self):
        ...         super().__init__("error", wrong=torch.long, samples=torch.long)
        ...
        ...     def update(self, output, target):
        ...         self.wrong += (output.argmax(1) != target).sum()
        ...         self.samples += len(target)
        ...
        ...     def compute(self):
        ...         return self.wrong / self.samples
        >>> metric = ErrorRate()
        >>> metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> float(metric.compute())
        0.5
    """

    def __init__(self, name: str, **sums: torch.dtype | tuple[Any, ...]) -> None:
        self.name = name
        self._dtypes: dict[str, torch.dtype] = {}
        for sum_name, spec in sums.items():
            dtype, *sizes = spec if isinstance(spec, tuple) else (spec,)
            self._dtypes[sum_name] = dtype
            setattr(self, sum_name, torch.zeros(sizes, dtype=dtype))

    @abstractmethod
    def update(self, output: Any, target: Any) -> None:
        """Add one batch. Must not wait for the device."""

    @abstractmethod
    def compute(self) -> Any:
        """Return the value over all batches since `reset`."""

    def reset(self) -> None:
        """Forget all batches."""
        for total in self._sums().values():
            total.zero_()

    def to(self: Self, device: torch.device | str) -> Self:
        """Move the sums to `device` and keep their values."""
        device = torch.device(device)
        for name, total in self._sums().items():
            dtype = self._dtypes[name]
            setattr(self, name, total.to(device, torch.float32 if is_missing(dtype, device) else dtype))
        return self

    def all_reduce(self) -> None:
        """Add up the sums of all processes. Every process calls it once, before `compute`.

        Afterwards the metric contains the batches of all processes. Call `reset` before the next update. Does
        nothing without a process group.
        """
        if not has_process_group():
            return
        sums = list(self._sums().values())
        for dtype in dict.fromkeys(total.dtype for total in sums):  # One message for the counts, one for the rest.
            alike = [total for total in sums if total.dtype == dtype]
            packed = torch.cat([total.flatten() for total in alike])
            distributed.all_reduce(packed)
            for total, reduced in zip(alike, torch.split(packed, [total.numel() for total in alike]), strict=True):
                total.copy_(reduced.view_as(total))

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the sums, by name."""
        return {name: total.clone() for name, total in self._sums().items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore the sums that `state_dict` returned, on any device.

        Raises:
            ValueError: the state belongs to another metric, or its sums have other sizes. Nothing is changed then.
        """
        expected = {name: tuple(total.shape) for name, total in self._sums().items()}
        saved = {name: tuple(total.shape) for name, total in state_dict.items()}
        if expected != saved:
            raise ValueError(
                f"expected a state of {self.name} with the sums {expected}, got {saved}. "
                "Create the metric with the arguments that it had when the state was saved"
            )
        for name, total in self._sums().items():
            total.copy_(state_dict[name].to(total.dtype))  # Cast before the copy: MPS does not accept float64.

    def _sums(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._dtypes}
