"""What a metric is, and the sample-weighted mean that losses and plain functions are kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .batch import count_samples

__all__ = ["Mean", "Metric", "as_metrics", "metric_name", "results"]


@runtime_checkable
class Metric(Protocol):
    """Any object with these three methods. Those of torchmetrics and torcheval are metrics as they are.

    Optional, used where they are there:

    * ``name: str``, the name in logs; without it the name of the class is used.
    * ``all_reduce() -> None``: sum the state over all processes. Called once, at the end of a loader, before
      ``compute``. An object that synchronises itself in ``compute``, as torchmetrics' do, has no need of it.
    * ``to(device)``, and ``state_dict()`` / ``load_state_dict(state_dict)`` for exact resume in mid-epoch.
    """

    def reset(self) -> None:
        """Forget all batches."""

    def update(self, output: Any, target: Any) -> Any:
        """Take in one batch. Should not wait for the device."""

    def compute(self) -> Any:
        """The value over all batches since ``reset``: a number, a 0-dim tensor, or a dict of those by name.

        A tensor of several values (per class, say) is not logged; a callback may ask for it in ``on_loader_end``.
        """


class Mean:
    """A mean weighted by samples, kept on the device as (sum, count) and divided when somebody asks.

    The sum is float64 where the device has it. Nothing here waits for the device but ``compute``'s reader.

    Args:
        device: where the sum is kept.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.to(torch.device(device))

    def to(self, device: torch.device) -> None:
        """Move to ``device`` and forget all batches."""
        # Apple's MPS has no float64.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.total = torch.zeros((), dtype=self._dtype, device=self._device)
        self.count = 0

    def update(self, value: Tensor | float, samples: int) -> None:
        """Take in the mean over a batch.

        Args:
            value: a number or a 0-dim tensor on the device.
            samples: how many samples it is the mean of.
        """
        if isinstance(value, Tensor):
            self.total.add_(value.detach(), alpha=samples)
        else:
            self.total += value * samples
        self.count += samples

    def compute(self) -> Tensor:
        """The mean so far, a 0-dim tensor on the device; nan when there were no samples."""
        return self.total / self.count if self.count else torch.full_like(self.total, torch.nan)

    def all_reduce(self) -> None:
        """Sum (sum, count) over all processes."""
        both = torch.stack([self.total, torch.full_like(self.total, self.count)])
        torch.distributed.all_reduce(both)
        self.total, self.count = both[0], int(both[1])

    def state_dict(self) -> dict[str, Any]:
        """Sum and count."""
        return {"total": self.total.clone(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take sum and count from what :meth:`state_dict` gave, on any device."""
        self.total = state_dict["total"].to(self._device, self._dtype)
        self.count = state_dict["count"]


class FunctionMetric:
    """A plain function ``f(output, target) -> scalar``, averaged by samples."""

    def __init__(self, function: Callable[[Any, Any], Tensor | float]) -> None:
        self.function = function
        self.name = getattr(function, "name", None) or getattr(function, "__name__", type(function).__name__)
        self._mean = Mean()
        self.to, self.reset, self.compute = self._mean.to, self._mean.reset, self._mean.compute
        self.all_reduce = self._mean.all_reduce
        self.state_dict, self.load_state_dict = self._mean.state_dict, self._mean.load_state_dict

    def update(self, output: Any, target: Any) -> None:
        """Take in one batch.

        Raises:
            TypeError: the function gave a value for each sample, say, and not their mean.
        """
        value = self.function(output, target)
        if isinstance(value, Tensor) and value.dim():
            raise TypeError(
                f"the metric {self.name} gave a tensor of shape {tuple(value.shape)}, expected a number or a 0-dim "
                "tensor, the mean over the batch: let it return value.mean()"
            )
        self._mean.update(value, count_samples(output))


def metric_name(metric: Metric) -> str:
    """The name under which a metric is logged: its ``name``, else that of its class."""
    name = getattr(metric, "name", None)
    return name if isinstance(name, str) else type(metric).__name__


def as_metrics(metrics: Iterable[Metric | Callable[[Any, Any], Any]]) -> list[Metric]:
    """Check what the user gave as ``metrics`` and wrap its plain functions.

    Raises:
        TypeError: what came is no list, or an entry is neither a metric object nor a function.
        ValueError: two metrics have one name, or one is called ``loss``.
    """
    if isinstance(metrics, (Metric, str)) or not isinstance(metrics, Iterable):
        raise TypeError(f"metrics must be a list of metrics, got {type(metrics).__name__}: write metrics=[...]")
    result: list[Metric] = []
    for metric in metrics:
        if isinstance(metric, type):
            raise TypeError(f"metrics holds the class {metric.__name__}: pass an object of it, {metric.__name__}(...)")
        if isinstance(metric, Metric):
            result.append(metric)
        elif callable(metric):
            result.append(FunctionMetric(metric))
        else:
            raise TypeError(
                f"metrics holds a {type(metric).__name__}: a metric has update(output, target), compute() and reset(), "
                "or is a function of (output, target)"
            )
    names = [metric_name(metric) for metric in result]
    for name in names:
        if name == "loss":
            raise ValueError(
                "a metric is called 'loss', which is the criterion's name in the logs: give it another name"
            )
        if names.count(name) > 1:
            raise ValueError(f"two metrics are called {name!r}: give each a name of its own (metric.name = ...)")
    return result


def results(loss: Mean, metrics: Sequence[Metric]) -> dict[str, float]:
    """The values of a loader that is done, by name. Over all processes, when there is a process group.

    Raises:
        ValueError: two metrics gave a value of the same name.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    values: dict[str, float] = {}
    for meter in (loss, *metrics):
        if several and hasattr(meter, "all_reduce"):
            meter.all_reduce()
        if meter is loss and not loss.count:
            continue  # A step of the user's own may have no loss.
        value = meter.compute()
        named = value if isinstance(value, Mapping) else {"loss" if meter is loss else metric_name(meter): value}
        for name, one in named.items():
            if name in values:
                raise ValueError(f"two metrics gave a value called {name!r}: give each a name of its own")
            if not isinstance(one, Tensor) or one.numel() == 1:
                values[name] = float(one)
    return values
