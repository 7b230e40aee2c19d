"""Define the protocol of metrics, and the weighted mean that averages losses and plain functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .broadcast import refuse_broadcast
from .signatures import check_order

__all__ = ["FunctionMetric", "Mean", "Metric", "as_metrics", "metric_name", "named_values"]


@runtime_checkable
class Metric(Protocol):
    """Protocol of a metric: any object with these three methods, such as those of torchmetrics and torcheval.

    These are optional and used where they exist:

    * `name: str`, the name in logs. Without it the name of the class is used.
    * `names`, a list of the names that `compute` returns, if it returns a dict. They are the names in logs, behind
      `name/` if another metric or a loss has the same one.
    * `higher_is_better: bool | None`, for callbacks that look for the best epoch.
    * `capturable = True`, if `update` changes nothing but tensors, in place (`self.hits += ...`), and reads no
      number from a tensor. Then `fit_callbacks.CompiledStep` makes it part of a CUDA graph.
    * `all_reduce() -> None`: sum the state over all processes. Called once, at the end of a loader, before
      `compute`. A metric that synchronises itself in `compute`, as those of torchmetrics do, does not need it.
    * `to(device)`, and `state_dict()` / `load_state_dict(state_dict)` for exact resume mid-epoch.

    Examples:
        ```python
        class ErrorRate:
            name = "error"
            higher_is_better = False

            def reset(self):
                self.wrong, self.samples = 0, 0

            def update(self, output, target):
                self.wrong = self.wrong + (output.argmax(1) != target).sum()  # stays on the device
                self.samples += len(target)

            def compute(self):
                return self.wrong / self.samples
        ```
    """

    def reset(self) -> None:
        """Forget all batches."""

    def update(self, output: Any, target: Any) -> Any:
        """Add one batch. Should not wait for the device."""

    def compute(self) -> Any:
        """Return the value over all batches since `reset`: a number, a 0-dim tensor, or a dict of those by name.

        The dict may contain dicts: their names are joined by a slash. A tensor of several values (per class, say) is
        not logged. A callback may read it in `on_loader_end`.
        """


class Mean:
    """Average values by weight. Keeps (total, weight) on the device, and divides in `compute`.

    The total is float64 where the device has it. Only reading the result of `compute` waits for the device.

    Args:
        device: where the total is kept.

    Examples:
        >>> loss = Mean()
        >>> loss.update(torch.tensor(1.0), 8)  # the mean loss of 8 samples
        >>> loss.update(torch.tensor(2.0), 24)
        >>> float(loss.compute())
        1.75
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.to(torch.device(device))

    def __repr__(self) -> str:
        return f"Mean({float(self.compute()):.6g})"

    def to(self, device: torch.device) -> None:
        """Move to `device` and forget all batches."""
        self._dtype = double(device)
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.total = torch.zeros((), dtype=self._dtype, device=self._device)
        self.weight: float | Tensor = 0

    def update(self, value: Tensor | float, weight: float | Tensor) -> None:
        """Add the mean over a batch. One of weight 0 is ignored, even if it is nan.

        Args:
            value: a number or a 0-dim tensor on the device.
            weight: what it is a mean over: the number of samples or tokens, as a number or a 0-dim tensor.
        """
        if isinstance(weight, Tensor):
            weight = weight.to(self._device, self._dtype)
            value = value.detach() if isinstance(value, Tensor) else torch.full_like(weight, value)
            self.total = self.total + torch.where(weight > 0, value, 0.0) * weight
        elif not weight:
            return
        elif isinstance(value, Tensor):
            self.total.add_(value.detach(), alpha=weight)
        else:
            self.total += value * weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        """Return the mean so far, a 0-dim tensor on the device. It is nan without samples."""
        if isinstance(self.weight, Tensor) or self.weight:
            return self.total / self.weight
        return torch.full_like(self.total, torch.nan)

    def all_reduce(self) -> None:
        """Sum (total, weight) over all processes."""
        both = torch.stack([self.total, torch.zeros_like(self.total) + self.weight])
        torch.distributed.all_reduce(both)
        self.total, self.weight = both[0], both[1]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of total and weight."""
        weight = self.weight.clone() if isinstance(self.weight, Tensor) else self.weight
        return {"total": self.total.clone(), "weight": weight}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore total and weight that `state_dict` returned, on any device."""
        self.total = state_dict["total"].to(self._device, self._dtype, copy=True)  # which update adds to
        weight = state_dict["weight"]
        self.weight = weight.to(self._device, self._dtype) if isinstance(weight, Tensor) else weight


class FunctionMetric:
    """Average a plain function `f(output, target) -> scalar` by the weight of the batches."""

    def __init__(self, function: Callable[[Any, Any], Tensor | float]) -> None:
        self.function = function
        self.name = getattr(function, "name", None) or getattr(function, "__name__", type(function).__name__)
        self.higher_is_better: bool | None = getattr(function, "higher_is_better", None)
        self.weight: float | Tensor = 1
        """The weight of the batch that `update` adds. The loop sets it."""
        self._is_new = True
        self._mean = Mean()
        self.to, self.reset, self.compute = self._mean.to, self._mean.reset, self._mean.compute
        self.all_reduce = self._mean.all_reduce
        self.state_dict, self.load_state_dict = self._mean.state_dict, self._mean.load_state_dict

    def __repr__(self) -> str:
        return f"FunctionMetric({self.name})"

    def update(self, output: Any, target: Any) -> None:
        """Add one batch.

        Raises:
            TypeError: the function returned something that is not a number, such as a tensor of one value per sample.
            ValueError: it broadcasts output and target in its first batch.
        """
        value = self.function(output, target)
        if isinstance(value, Tensor) and value.dim():
            raise TypeError(
                f"expected the metric {self.name} to return a number or a 0-dim tensor, the mean over the batch, got "
                f"a tensor of shape {tuple(value.shape)}. Return value.mean()"
            )
        if self._is_new:
            self._is_new = False
            if not hasattr(value, "__float__"):
                hint = "Does it end with a return?" if value is None else "For several, pass a function for each number"
                raise TypeError(
                    f"expected the metric {self.name} to return a number or a 0-dim tensor, got {value!r:.80}. {hint}"
                )
            refuse_broadcast(f"the metric {self.name}", self.function, output, target, value)
        self._mean.update(value, self.weight)


def double(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's MPS, which does not have float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def metric_name(metric: Metric) -> str:
    """Return the name under which a metric is logged: its `name`, or else the name of its class."""
    name = getattr(metric, "name", None)
    return name if isinstance(name, str) else type(metric).__name__


def as_metrics(metrics: Iterable[Metric | Callable[[Any, Any], Any]]) -> list[Metric]:
    """Check a list of metrics and wrap its plain functions.

    Raises:
        TypeError: it is not a list, or an entry is neither a metric object nor a function.
        ValueError: two metrics have the same name, or one is called `loss`.
    """
    if isinstance(metrics, (Metric, Mapping)) or not isinstance(metrics, Iterable):
        raise TypeError(f"expected metrics to be a list of metrics, got {type(metrics).__name__}. Write metrics=[...]")
    result: list[Metric] = []
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        if isinstance(metric, type):
            raise TypeError(
                f"expected metrics, got the class {metric.__name__}. Pass an object: {metric.__name__}(...)"
            )
        if isinstance(metric, str):
            raise TypeError(
                f"expected metrics, got the string {metric!r}. Pass a function of (output, target) or a metric object, "
                "such as metrics=[fit_metrics.Accuracy()]"
            )
        if isinstance(metric, Metric):
            result.append(metric)
        elif callable(metric):
            check_order("metric", metric)
            result.append(FunctionMetric(metric))
        else:
            raise TypeError(
                f"expected metrics, got an object of {type(metric).__name__}. Pass one with update(output, target), "
                "compute() and reset(), or a function of (output, target)"
            )
    names = [metric_name(metric) for metric in result]
    for name in names:
        if name == "loss":
            raise ValueError(
                "expected metrics with names other than 'loss', the name of the criterion. Set metric.name = ..."
            )
        if names.count(name) > 1:
            raise ValueError(f"expected metrics with different names, got two named {name!r}. Set metric.name = ...")
    return result


def named_values(metric: Metric, *, warns: bool = False) -> dict[str, float]:
    """Return the numbers that a metric computes, by name. Reading them waits for the device.

    A dict keeps its names, and a nested dict joins them by a slash: `{"f1": {"cat": 0.9}}` is `f1/cat`. A tensor of
    several values is left out, and so is anything else that is not a number.

    Args:
        metric: the metric, after `update`.
        warns: warn about what is neither a number nor a tensor.
    """
    value = metric.compute()
    values: dict[str, float] = {}
    for name, part in _leaves(value, "" if isinstance(value, Mapping) else metric_name(metric)):
        number = _number(part)
        if number is not None:
            values[name] = number
        elif warns and (not isinstance(part, Tensor) or part.is_complex()):
            got = part.dtype if isinstance(part, Tensor) else type(part).__name__
            warnings.warn(
                f"{name} is not logged: expected a number, a 0-dim tensor or a dict of those, got {got}. "
                f"Return a number from compute() of {metric_name(metric)}",
                stacklevel=2,
            )
    return values


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{name}/{key}" if name else str(key))
    else:
        yield name, value


def _number(value: Any) -> float | None:
    """Return a value as a number, None if it is not one."""
    if isinstance(value, (str, bytes)) or (isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex())):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
