"""Check the results of a batch, its forward pass and its step, before the optimizer changes anything."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .broadcast import refuse_broadcast
from .metric import Metric, metric_name
from .models import unwrap

__all__ = [
    "UNKNOWN_BATCH_SIZE",
    "loss",
    "mean",
    "nothing_measured",
    "own_step",
    "parts",
    "size",
    "total_loss",
]

UNKNOWN_BATCH_SIZE = (
    "expected input and target of one length, the number of samples, got several. Set state.batch_size in a callback's "
    "on_batch_begin or in Runner.forward, or return tensors whose first dimension is the batch from collate_fn"
)


def loss(value: Any, is_train: bool, source: str) -> None:
    """Check that a loss is a scalar tensor, in training one with a graph.

    Args:
        value: the loss.
        is_train: whether a backward pass follows.
        source: what set it, for the message.

    Raises:
        TypeError: it is not a tensor.
        ValueError: it is not a scalar, or has no graph in training.
    """
    came = "forward to set state.loss to" if source == "forward" else f"{source} to return"
    if not isinstance(value, Tensor):
        if isinstance(value, (int, float)):
            hint = "Leave out item() and float(), since training needs the tensor"
        elif isinstance(value, (tuple, list)):
            hint = 'For several losses, use a dict: {"loss": total, "other": other}'
        else:
            hint = "Set self.state.loss in forward" if source == "forward" else "Does it end with a return?"
        raise TypeError(f"expected {came} a scalar tensor, got {value!r:.80}. {hint}")
    if value.dim():
        raise ValueError(
            f"expected {came} a scalar tensor, got shape {tuple(value.shape)}. Use its mean(), or reduction='mean'"
        )
    if is_train and not value.requires_grad:
        raise ValueError(
            "expected a loss with a graph, got one that does not require grad. Unfreeze a parameter of it, and do not "
            "use detach(), item(), argmax or torch.no_grad() on the way"
        )


def mean(criterion: Any, output: Any, target: Any, loss: Any) -> None:
    """Check that a criterion returns the mean over a batch, of each output with its own target.

    A loss of torch that sums says so itself. A module or function around it may divide the sum, so the losses of both
    halves of the batch are compared with that of the whole.

    Raises:
        ValueError: it returns the sum, or compares each output with all targets.
    """
    criterion = unwrap(criterion)
    function = getattr(criterion, "func", criterion)  # of a partial
    name = getattr(function, "__name__", type(function).__name__)
    refuse_broadcast(f"the criterion {name}", criterion, output, target, loss)
    inside = criterion.modules() if isinstance(criterion, nn.Module) else [criterion]
    if any(_reduction(part) == "sum" for part in inside):
        is_of_torch = type(criterion).__module__ == nn.MSELoss.__module__
        if is_of_torch or _adds_up(criterion, output, target, loss):
            raise ValueError(
                f"expected the criterion {name} to return the mean over a batch, got the sum (reduction='sum'). Sums "
                "of 8 and of 2 samples cannot be averaged. Use reduction='mean', or divide the sum by len(target)"
            )


def _reduction(part: Any) -> Any:
    return getattr(part, "keywords", {}).get("reduction") or getattr(part, "reduction", None)


def _adds_up(criterion: Any, output: Any, target: Any, loss: Any) -> bool:
    """Return whether the losses of two halves of a batch add up to its loss."""
    try:
        half = len(target) // 2
        with torch.no_grad(), torch.random.fork_rng([]):
            trial = copy.deepcopy(criterion)  # It may count batches.
            both = trial(output[:half], target[:half]) + trial(output[half:], target[half:])
            return half > 0 and bool(loss) and bool(torch.isclose(both, loss, rtol=1e-3))
    except Exception:  # of the user's code, which may expect a whole batch
        return False


def parts(losses: Mapping[str, Any]) -> None:
    """Check that each other loss of a dict is a number or a scalar tensor.

    Raises:
        ValueError: one is not.
    """
    for name, value in losses.items():
        if isinstance(value, Tensor) and value.dim():
            raise ValueError(
                f"expected the loss {name!r} to be a scalar, got a tensor of shape {tuple(value.shape)}. Use its mean()"
            )


def size(batch_size: Any, weight: Any) -> None:
    """Check the number of samples of a batch, and the weight of its mean loss.

    Raises:
        TypeError: the number of samples is a tensor, which the counters would wait for.
        ValueError: it is unknown, or the weight is not a scalar.
    """
    if batch_size is None:
        raise ValueError(UNKNOWN_BATCH_SIZE)
    if isinstance(batch_size, Tensor):
        raise TypeError(
            "expected state.batch_size to be an int, the number of samples, got a tensor. Set state.weight if the loss "
            "is a mean over something else. It may be a tensor"
        )
    if isinstance(weight, Tensor) and weight.dim():
        raise ValueError(
            f"expected state.weight to be a number or a 0-dim tensor, got shape {tuple(weight.shape)}. Use its sum()"
        )


def total_loss(losses: Mapping[str, Any], metrics: list[str]) -> Any:
    """Return the loss that is trained on of a dict of losses.

    Raises:
        TypeError: it is not a dict.
        ValueError: `"loss"` is missing, or a loss has the name of a metric.
    """
    if not isinstance(losses, Mapping):
        raise TypeError(f"expected state.loss to be a scalar tensor or a dict of them, got {losses!r:.80}")
    if "loss" not in losses:
        raise ValueError(
            f"expected the key 'loss' in the dict of losses, got {', '.join(map(str, losses))}. "
            'Add the loss to train on: {"loss": total, ...}'
        )
    if clash := [name for name in losses if name in metrics]:
        raise ValueError(f"expected different names for losses and metrics, got {clash[0]!r} twice. Rename one of them")
    return losses["loss"]


def own_step(ignored: list[str]) -> None:
    """Warn about settings and callbacks that a step of the user's own does not reach."""
    warnings.warn(
        f"your _make_step does not use {', '.join(ignored)}, so they have no effect unless it does their work itself. "
        "Run the forward pass in self.autocast(), and call self.backward(loss) and self.optimizer_step()",
        stacklevel=5,
    )


def nothing_measured(metrics: Iterable[Metric]) -> None:
    """Warn of an evaluation in which no batch had an output. In training that is normal (detection)."""
    warnings.warn(
        f"{', '.join(map(metric_name, metrics))} could not be computed, because no batch had an output. "
        "Set state.output in Runner.forward or in your step",
        stacklevel=5,
    )
