"""Count the batches of a loader, and average its losses and metrics over them and over all processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from . import batch_checks, exchange_checks
from .batch import detached
from .metric import FunctionMetric, Mean, Metric, metric_name, named_values
from .processes import gather
from .state import RunnerState

__all__ = ["Results"]


class Results:
    """Keep the losses, metrics and samples of a loader so far, without waiting for the device.

    Args:
        state: the state of the run, in which the meters and metrics are.
        half: the half precision that outputs may have, None for float32.

    Attributes:
        measured: the metrics that have seen the batch in a step which a callback has made.
        has_outputs: whether a batch of the loader had an output, which the metrics have seen.
    """

    def __init__(self, state: RunnerState, half: torch.dtype | None) -> None:
        self._state = state
        self._half = half
        self.measured: Collection[Metric] = ()
        self.has_outputs = False
        # Of this epoch on this process, of its complete windows, and before it.
        self._samples, self._samples_stepped, self._samples_before = 0, 0, state.samples_seen
        for metric in state.metrics:
            if hasattr(metric, "to"):
                metric.to(state.device)
            if hasattr(metric, "persistent"):  # torchmetrics: let state_dict contain what exact resume needs
                metric.persistent(True)

    def reset(self, samples_before: int, samples: int = 0) -> None:
        """Forget all batches.

        Args:
            samples_before: `state.samples_seen` at the start of the epoch.
            samples: samples since then that count, although their results are forgotten.
        """
        self._samples, self._samples_stepped, self._samples_before = samples, samples, samples_before
        self.has_outputs = False
        self._state.loss_meters = {}
        for metric in self._state.metrics:
            metric.reset()

    def add(self) -> None:
        """Count the batch, and add it to the losses and the metrics."""
        state = self._state
        if state.is_train:
            if state.batch_size is None:
                raise ValueError(batch_checks.UNKNOWN_BATCH_SIZE)
            state.global_step += state.is_optimizer_step
            self._samples += state.batch_size
            state.samples_seen += state.batch_size * state.world_size  # corrected at the end of the loader
            if state.is_optimizer_step:
                self._samples_stepped = self._samples
        if state.loss is not None:
            if not isinstance(state.loss, Tensor):
                self.split_losses()
            weight = state.batch_size if state.weight is None and state.batch_size is not None else self.weight()
            (state.loss_meters.get("loss") or self._new_meter("loss")).update(state.loss, weight)
            for name, value in state.losses.items():
                (state.loss_meters.get(name) or self._new_meter(name)).update(value, weight)
        if state.output is not None and state.metrics:
            metrics: list[Metric] = state.metrics
            if self.measured:
                seen = set(map(id, self.measured))  # not by ==, which metrics of torchmetrics define in their own way
                metrics, self.measured = [metric for metric in metrics if id(metric) not in seen], ()
            if metrics:
                self.measure(metrics)

    def measure(self, metrics: Iterable[Metric]) -> None:
        """Update metrics with the batch."""
        state = self._state
        self.has_outputs = True
        output, target = detached(state.output, self._half), detached(state.target, self._half)
        with torch.no_grad():
            for metric in metrics:
                if isinstance(metric, FunctionMetric):
                    metric.weight = self.weight()
                metric.update(output, target)

    def note_measured(self, metrics: Collection[Metric]) -> None:
        """Take note of metrics that have seen the batch already."""
        self.measured = metrics
        self.has_outputs = self.has_outputs or bool(metrics)

    def split_losses(self) -> None:
        """Move the other entries of a dict of losses than `"loss"` to `state.losses`."""
        state, losses = self._state, self._state.loss
        state.loss = batch_checks.total_loss(losses, [metric_name(metric) for metric in state.metrics])
        state.losses = {name: value for name, value in losses.items() if name != "loss"}

    def weight(self) -> float | Tensor:
        """Return the number that the mean loss of this batch is a mean over.

        Raises:
            ValueError: the number of samples of the batch is unknown.
        """
        if self._state.weight is not None:
            return self._state.weight
        if self._state.batch_size is None:
            raise ValueError(batch_checks.UNKNOWN_BATCH_SIZE)
        return self._state.batch_size

    def sum_over_processes(self) -> None:
        """Sum losses, metrics and samples over all processes, some of which may not have had a batch."""
        state = self._state
        seen = list(state.loss_meters), self.has_outputs, self._samples
        gathered = gather(f"the end of the {state.loader_name} loader", seen)
        names, has_outputs, samples = zip(*gathered, strict=True)
        self.has_outputs = any(has_outputs)
        exchange_checks.states_are_alike(state.metrics, has_outputs, state.loader_name)
        state.loss_meters = {
            name: state.loss_meters.get(name) or self._new_meter(name) for name in dict.fromkeys(chain(*names))
        }
        if state.is_train:
            state.samples_seen = self._samples_before + sum(samples)
        for meter in (*state.loss_meters.values(), *(state.metrics if self.has_outputs else ())):
            if hasattr(meter, "all_reduce"):
                meter.all_reduce()

    def compute(self) -> dict[str, float]:
        """Return the losses and metrics by name. This waits for the device.

        Metrics are left out if no batch had an output. A name in the dict of a metric is prefixed with that of the
        metric if another result has it too.

        Raises:
            ValueError: two metrics return a value of the same name.
        """
        values = {name: float(meter.compute()) for name, meter in self._state.loss_meters.items()}
        if not self.has_outputs or not self._state.metrics:
            return values
        found = {metric_name(metric): named_values(metric, warns=True) for metric in self._state.metrics}
        counts = Counter(chain(values, *found.values()))
        for metric, numbers in found.items():
            for key, value in numbers.items():
                name = key if counts[key] == 1 or key == metric else f"{metric}/{key}"
                if name in values:
                    raise ValueError(
                        f"expected results with different names, got two named {name!r}. Rename one of them"
                    )
                values[name] = value
        return values

    def state_dict(self, *, is_inside: bool) -> dict[str, Any]:
        """Return what was counted so far.

        Args:
            is_inside: whether an epoch has begun. Between epochs the meters contain a loader which the next one resets.
        """
        meters, metrics = (self._state.loss_meters.items(), self._state.metrics) if is_inside else ((), ())
        return {
            "losses": {name: meter.state_dict() for name, meter in meters},
            "metrics": {metric_name(m): dict(m.state_dict()) for m in metrics if hasattr(m, "state_dict")},
            "has_outputs": self.has_outputs,
            "samples": [self._samples, self._samples_stepped, self._samples_before],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with what `state_dict` returned."""
        for name, values in state_dict["losses"].items():
            self._new_meter(name).load_state_dict(values)
        for metric in self._state.metrics:
            if hasattr(metric, "load_state_dict") and (values := state_dict["metrics"].get(metric_name(metric))):
                metric.load_state_dict(values)
        self.has_outputs = state_dict["has_outputs"]
        self._samples, self._samples_stepped, self._samples_before = state_dict["samples"]

    def _new_meter(self, name: str) -> Mean:
        meter = self._state.loss_meters[name] = Mean(self._state.device)
        return meter
