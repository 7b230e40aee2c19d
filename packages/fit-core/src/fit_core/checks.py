"""What the Runner refuses before the first step, each in a sentence that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .callback import Callback
from .metric import Metric, metric_name
from .stream import Stream, length, process_group, why_empty

__all__ = ["fit", "loader", "loss", "metrics_reduce", "model_device", "runner"]


def at_least_one(**numbers: int | None) -> None:
    """Each number is a positive int, or None.

    Raises:
        TypeError: one is no int.
        ValueError: one is below 1.
    """
    for name, number in numbers.items():
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be a whole number, got {number!r}")
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}")


def runner(
    model: Any, optimizer: Any, criterion: Any, callbacks: Iterable[Any], accumulate_steps: int, both_halves: bool
) -> None:
    """What a Runner is made of is what it should be, and in this order.

    Raises:
        TypeError, ValueError: something is not.
    """
    order = "the order is Runner(model, optimizer, criterion, metrics, callbacks)"
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; {order}")
    if not all(hasattr(optimizer, name) for name in ("param_groups", "step", "state_dict")):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; {order}")
    if not callable(criterion) or hasattr(criterion, "param_groups"):
        raise TypeError(f"criterion must be a function of (output, target), got {type(criterion).__name__}; {order}")
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be a list of callbacks, got {type(callbacks).__name__}: write callbacks=[...]")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            got = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
            raise TypeError(f"callbacks holds {got}: pass objects of subclasses of fit_core.Callback; {order}")
    at_least_one(accumulate_steps=accumulate_steps)
    if both_halves:
        raise ValueError("use_fp16 and use_bf16 exclude each other: choose one")
    optimizer_steps_model(optimizer, model)


def model_device(model: nn.Module) -> torch.device:
    """The device of a model's parameters and buffers; the CPU for a model that has none.

    Raises:
        ValueError: they are on more than one.
    """
    devices: dict[torch.device, str] = {}
    for tensors in (model.named_parameters(), model.named_buffers()):
        for name, tensor in tensors:
            devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise ValueError(
            f"the model is spread over {len(devices)} devices ({places}): move it to one, model.to(device)"
        )
    return next(iter(devices), torch.device("cpu"))


def optimizer_steps_model(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """The optimizer holds the model's trainable parameters; warns when it holds only some of them.

    Raises:
        ValueError: it holds none of them.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for name, parameter in trainable.items() if id(parameter) not in held]
    if not trainable:
        raise ValueError("the model has no parameter that requires grad: there is nothing to train")
    if len(missing) == len(trainable):
        raise ValueError(
            f"the optimizer holds none of the model's {len(trainable)} trainable parameters: "
            "make it from this model's parameters(), after the model is built and moved to its device"
        )
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        warnings.warn(
            f"the optimizer does not hold {len(missing)} of {len(trainable)} trainable parameters, which will not "
            f"train: {names}. Add them to the optimizer, or set requires_grad_(False) to say that it is meant",
            stacklevel=3,
        )


def loader(name: str, value: Any, steps: int | None, *, passes: int = 1) -> None:
    """A loader is iterable, not empty, and can be read as often as needed. One of several processes may be empty.

    Raises:
        TypeError: it is not iterable.
        ValueError: it is empty, or is read more than once and can be read only once.
    """
    at_least_one(steps=steps)
    if not isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        raise TypeError(f"{name} must be an iterable of batches, such as a DataLoader, got {type(value).__name__}")
    if length(value) == 0 and process_group()[1] == 1:
        raise ValueError(why_empty(value, name))
    if passes > 1 and steps is None and isinstance(value, Iterator):
        raise ValueError(
            f"{name} is a {type(value).__name__}, which can be read only once, and {passes} passes were asked for: "
            "pass a list, a DataLoader, or an object whose __iter__ starts anew; of an endless one, say how many "
            "batches make an epoch with steps_per_epoch (val_steps for validation)"
        )


def fit(stream: Stream, epochs: int, val_loader: Any, val_steps: int | None, validate_every: int) -> None:
    """The arguments of ``Runner.fit`` fit together, and the training loader is as long on every process.

    Processes whose loaders differ would wait for each other for ever, so they tell each other their lengths here.

    Raises:
        TypeError, ValueError: something does not fit; on every process when the lengths differ.
    """
    at_least_one(epochs=epochs, steps_per_epoch=stream.steps, val_steps=val_steps, validate_every=validate_every)
    loader("train_loader", stream.loader, stream.steps, passes=epochs)
    if val_loader is not None:
        loader("val_loader", val_loader, val_steps, passes=epochs // validate_every)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        mine = torch.tensor([-1 if stream.size is None else stream.size], device=stream.device)
        everyone = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(everyone, mine)
        sizes = [int(size) for size in everyone]
        if len(set(sizes)) > 1:
            counts = ", ".join(f"rank {rank}: {'no len' if size < 0 else size}" for rank, size in enumerate(sizes))
            raise ValueError(
                f"the training loaders of the processes differ in length ({counts} batches), which would hang: "
                "shard the loader so that each gets as many (fit_distributed.shard does), or pass steps_per_epoch"
            )
    if stream.size == 0:
        raise ValueError(why_empty(stream.loader, "train_loader"))


def loss(value: Any, is_train: bool) -> None:
    """A loss is a scalar tensor, in training one with a graph.

    Raises:
        TypeError: it is no tensor.
        ValueError: it is no scalar, or has no graph in training.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"criterion returned {value!r:.80}, expected a scalar tensor: does it end with a return?")
    if value.dim():
        raise ValueError(
            f"criterion returned a tensor of shape {tuple(value.shape)}, expected a scalar: "
            "take its mean, or use reduction='mean'"
        )
    if is_train and not value.requires_grad:
        raise ValueError(
            "the loss has no graph to go backward through: no parameter in it requires grad, "
            "or it passed through detach(), item(), argmax or torch.no_grad()"
        )


def metrics_reduce(metrics: Iterable[Metric], world_size: int) -> None:
    """Warn of metrics that would tell the numbers of one process only. torchmetrics' have ``sync_context``."""
    names = [metric_name(one) for one in metrics if not hasattr(one, "all_reduce") and not hasattr(one, "sync_context")]
    if names and world_size > 1:
        warnings.warn(
            f"there are several processes, and {', '.join(names)} cannot be summed over them: each process logs its "
            "own numbers. Give the metric an all_reduce() method",
            stacklevel=4,
        )
