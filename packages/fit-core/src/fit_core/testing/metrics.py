"""Check that a metric keeps the protocol."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fit_core import Callback, Metric, Runner, named_values

from .callbacks import run_checks
from .runners import Scale, Snapshots
from .values import close, flat, from_file, to_file

__all__ = ["METRIC_CHECKS", "MetricCase", "check_metric"]


@dataclass(frozen=True)
class MetricCase:
    """Describe a metric and samples for it.

    Attributes:
        make: returns a new metric.
        output: the output of a model for 40 samples, a tensor.
        target: their targets.
    """

    make: Callable[[], Metric]
    output: torch.Tensor
    target: torch.Tensor

    def batches(self, *sizes: int) -> list[Any]:
        """Return the samples in batches of these sizes."""
        assert len(self.output) == len(self.target) == 40
        parts: Any = torch.split
        return list(zip(parts(self.output, sizes), parts(self.target, sizes), strict=True))

    def fed(self, *batches: Any) -> Any:
        """Return a new metric that has seen these batches."""
        metric = self.make()
        metric.reset()
        for output, target in batches:
            metric.update(output, target)
        return metric

    def whole(self) -> Any:
        """Return the value of all samples."""
        return self.fed((self.output, self.target)).compute()

    def runner(self, *callbacks: Callback) -> tuple[Runner, Any]:
        """Return a Runner with a new metric, and the metric."""
        model = Scale()
        metric = self.make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return Runner(model, optimizer, lambda output, target: output.mean(), [metric], callbacks), metric


def check_split(case: MetricCase, folder: Path) -> None:
    """Check that the value is the same with batches of other sizes, including a short last one."""
    close(case.fed(*case.batches(7, 7, 7, 7, 7, 5)).compute(), case.whole())
    close(case.fed(*case.batches(1, 39)).compute(), case.whole())


def check_reset(case: MetricCase, folder: Path) -> None:
    """Check that `reset` forgets, `compute` does not, and a value, perhaps nan, is returned without samples."""
    metric = case.fed(*case.batches(25, 15))
    close(metric.compute(), case.whole())
    close(metric.compute(), case.whole())
    metric.reset()
    close(metric.compute(), case.fed().compute())
    metric.update(case.output, case.target)
    close(metric.compute(), case.whole())


def check_metric_state(case: MetricCase, folder: Path) -> None:
    """Check that a state is a copy, survives a file, and that a new metric continues from it."""
    first, second = case.batches(25, 15)
    metric = case.fed(first)
    state = metric.state_dict()
    metric.update(*second)
    file = to_file(state)
    other = case.fed()
    other.load_state_dict(from_file(file))
    other.update(*second)
    close(other.compute(), case.whole())


def check_device(case: MetricCase, folder: Path) -> None:
    """Check that `to` moves the metric and `update` does not read values, which the device meta lacks."""
    metric: Any = case.make()
    metric.to(torch.device("meta"))
    metric.reset()
    for _ in range(2):
        metric.update(case.output.to("meta"), case.target.to("meta"))


def check_logs(case: MetricCase, folder: Path) -> None:
    """Check that the Runner logs the value under the metric's name. A tensor of several values is not logged."""
    runner, metric = case.runner()
    logs = runner.evaluate(case.batches(16, 16, 8), name="test")
    values = named_values(case.fed((case.output, case.target)))
    assert list(logs) == ["test/loss", *(f"test/{name}" for name in values)]
    close([logs[f"test/{name}"] for name in values], list(values.values()))
    if not values:
        close(metric.compute(), case.whole())
    assert getattr(metric, "higher_is_better", None) in (True, False, None)


def check_metric_resume(case: MetricCase, folder: Path) -> None:
    """Check that a run that is interrupted inside an epoch has the same bits in its history as an uninterrupted one."""

    def run(saved: Any = None) -> tuple[list[Any], Snapshots]:
        snapshots = Snapshots(()) if saved else Snapshots()
        runner, metric = case.runner(snapshots)
        if saved:
            runner.state.load_state_dict(saved)
        runner.fit(case.batches(16, 16, 8), epochs=2, val_loader=case.batches(30, 10))
        return flat([runner.state.history, metric.compute()]), snapshots

    gold, snapshots = run()
    for number in range(len(snapshots.saved) - 1):
        assert run(snapshots.load(number))[0] == gold, f"interrupted after checkpoint {number}"


METRIC_CHECKS: list[Callable[[MetricCase, Path], None]] = [
    check_split,
    check_reset,
    check_metric_state,
    check_device,
    check_logs,
    check_metric_resume,
]


def check_metric(
    metric: Metric | Callable[[], Metric], output: torch.Tensor, target: torch.Tensor, *, skip: Collection[str] = ()
) -> None:
    """Check that a metric keeps the protocol of fit-core.

    Its value must not depend on how the samples are split into batches, and it is reset, saved, restored, moved to a
    device without values, logged by a Runner and resumed. As tests of their own, the checks are in `METRIC_CHECKS`.

    Args:
        metric: an unused metric, of which each check gets copies, or a function that returns new ones.
        output: the output of a model for 40 samples, `(40, ...)`.
        target: their targets, `(40, ...)`.
        skip: names of checks that cannot hold for this metric.

    Raises:
        AssertionError: a check failed. The message says which, and what it checks.

    Examples:
        >>> check_metric(MyMetric(), torch.randn(40, 3), torch.randint(3, (40,)))
    """
    is_object = isinstance(metric, Metric) and not isinstance(metric, type)
    make: Any = (lambda: copy.deepcopy(metric)) if is_object else metric
    run_checks(METRIC_CHECKS, MetricCase(make, output, target), skip)
