"""What metrics have in common: a few sums on the device, and a formula over them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from fit_core import Metric
from torch import Tensor, distributed

__all__ = ["SumMetric", "gather_rows", "real", "several_processes"]

Self = TypeVar("Self", bound="SumMetric")


class SumMetric(Metric):
    """Base of metrics that are a formula over sums, and so right on any split of the data and number of processes.

    A subclass names its sums, adds to them in ``update`` and divides in ``compute``. :class:`fit_core.Runner` moves a
    metric to the model's device, and calls ``update`` without gradients. In a loop of your own, move it as you move the
    model, and ``detach()`` what you add to a sum of floating dtype; the metrics of this package do that themselves.

    Args:
        name: the name in the logs; an attribute, free to be changed.
        **sums: the dtype of each sum, or a tuple of the dtype and its sizes. Each becomes an attribute of the metric,
            a tensor of zeros. The sizes must not depend on the data: a process without any takes part in
            :meth:`all_reduce` all the same. Apple's MPS has no float64, there float32 stands for it.

    Example:
        >>> class ErrorRate(SumMetric):
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
        """Take in one batch. Does not wait for the device."""

    @abstractmethod
    def compute(self) -> Any:
        """The value over all batches since :meth:`reset`."""

    def reset(self) -> None:
        """Forget all batches."""
        for one in self._sums().values():
            one.zero_()

    def to(self: Self, device: torch.device | str) -> Self:
        """Move the sums to ``device``, with what they hold."""
        device = torch.device(device)
        for name, one in self._sums().items():
            dtype = self._dtypes[name]
            setattr(self, name, one.to(device, torch.float32 if _lacks(device, dtype) else dtype))
        return self

    def all_reduce(self) -> None:
        """Sum over all processes: each calls it, once, before :meth:`compute`. Does nothing where there is one process.

        From then on the metric holds the batches of all; :meth:`reset` it before it takes in more.
        """
        if not several_processes():
            return
        sums = list(self._sums().values())
        for dtype in dict.fromkeys(one.dtype for one in sums):  # One message for the counts, one for the rest.
            alike = [one for one in sums if one.dtype == dtype]
            packed = torch.cat([one.flatten() for one in alike])
            distributed.all_reduce(packed)
            for one, part in zip(alike, torch.split(packed, [one.numel() for one in alike]), strict=True):
                one.copy_(part.view_as(one))

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the sums, by name."""
        return {name: one.clone() for name, one in self._sums().items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Take the sums from what :meth:`state_dict` gave, on any device.

        Raises:
            ValueError: the state is of another metric, or of other sizes. Nothing is changed then.
        """
        own = {name: tuple(one.shape) for name, one in self._sums().items()}
        saved = {name: tuple(one.shape) for name, one in state_dict.items()}
        if own != saved:
            raise ValueError(f"the state is of another metric: it holds {saved}, {self.name} has {own}")
        for name, one in self._sums().items():
            one.copy_(state_dict[name].to(one.dtype))  # before it moves: MPS takes no float64

    def _sums(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._dtypes}


def real(value: Tensor) -> Tensor:
    """``value`` in float64, or in float32 where the device has none."""
    return value.to(torch.float32 if _lacks(value.device, torch.float64) else torch.float64)


def several_processes() -> bool:
    """There is a process group, and so somebody to exchange sums with."""
    return distributed.is_available() and distributed.is_initialized()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, one below the other in the order of ranks.

    Args:
        rows: ``(n, ...)``; n may differ between processes and be 0, what follows it and the dtype are the same.
    """
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, size)
    counts = [int(one) for one in sizes]
    # all_gather wants equal shapes: fill up to the longest, and cut again.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _lacks(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "mps" and dtype == torch.float64
