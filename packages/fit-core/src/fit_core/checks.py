"""Refuse bad input before the first step, with messages that say how to fix it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, default_collate

from .arguments import ONE_LOADER
from .callback import Callback
from .loaders import length, why_empty
from .models import common_device
from .processes import gather, has_process_group, rank_and_world_size
from .sharded import reshard
from .signatures import check_order
from .state import RunnerState
from .stream import Stream

__all__ = [
    "at_least_one",
    "callbacks",
    "can_train",
    "device",
    "fit",
    "loader",
    "metrics",
    "runner",
]


_ORDER = "Pass Runner(model, optimizer, criterion, metrics, callbacks) in this order"


def at_least_one(**numbers: int | None) -> None:
    """Check that each number is a positive int, or None.

    Raises:
        TypeError: one is not an int.
        ValueError: one is below 1.
    """
    for name, number in numbers.items():
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int):
            hint = f". Write int({name})" if hasattr(number, "__index__") and not isinstance(number, bool) else ""
            raise TypeError(f"expected {name} to be a whole number, got {number!r}{hint}")
        if number < 1:
            raise ValueError(f"expected {name} to be 1 or more, got {number}")


def _required(**numbers: int) -> None:
    for name, number in numbers.items():
        if number is None:
            raise TypeError(f"expected {name} to be a whole number, got None")
    at_least_one(**numbers)


def runner(model: Any, optimizer: Any, criterion: Any, accumulate_steps: int, both_halves: bool) -> None:
    """Check the arguments of Runner except metrics and callbacks, and their order.

    Raises:
        TypeError: one has the wrong type.
        ValueError: one is out of range, or they contradict each other.
    """
    for name, value, example in (
        ("model", model, "Net()"),
        ("optimizer", optimizer, "torch.optim.Adam(model.parameters())"),
        ("criterion", criterion, "nn.CrossEntropyLoss()"),
    ):
        if isinstance(value, type):
            raise TypeError(f"expected {name} to be an object, got the class {value.__name__}. Pass {example}")
        if isinstance(value, str):
            raise TypeError(f"expected {name} to be an object, got the string {value!r}. Pass {example}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}. {_ORDER}")
    if not all(hasattr(optimizer, name) for name in ("param_groups", "step", "state_dict")):
        raise TypeError(f"expected optimizer to be a torch.optim.Optimizer, got {type(optimizer).__name__}. {_ORDER}")
    if criterion is None:
        raise TypeError(
            "expected criterion to be a function of (output, target), got None. Pass nn.CrossEntropyLoss(), for "
            "example, or override Runner.forward, which then sets state.loss"
        )
    if not callable(criterion) or hasattr(criterion, "param_groups"):
        kind = type(criterion).__name__
        raise TypeError(f"expected criterion to be a function of (output, target), got {kind}. {_ORDER}")
    check_order("criterion", criterion)
    _required(accumulate_steps=accumulate_steps)
    if both_halves:
        raise ValueError("expected use_fp16 or use_bf16, got both. Pass one of them")
    _left_out(optimizer, model, criterion)


def callbacks(callbacks: Iterable[Any]) -> list[Callback]:
    """Check the callbacks of a Runner. Return them as a list, since an iterable may be read only once.

    Raises:
        TypeError: they are not a list, or an entry is not a callback.
    """
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        kind = type(callbacks).__name__
        raise TypeError(f"expected callbacks to be a list of callbacks, got {kind}. Write callbacks=[...]")
    result = list(callbacks)
    for callback in result:
        if not isinstance(callback, Callback):
            if isinstance(callback, type):
                name = callback.__name__
                raise TypeError(f"expected callbacks, got the class {name}. Pass an object: {name}(...)")
            got = f"an object of {type(callback).__name__}"
            if isinstance(callback, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise TypeError(
                    f"expected callbacks, got {got} of torch. Write fit_callbacks.ReduceLROnPlateau(monitor)"
                )
            if hasattr(callback, "step") and hasattr(callback, "optimizer"):
                raise TypeError(
                    f"expected callbacks, got {got}. Wrap it: fit_callbacks.LRScheduler(scheduler, interval='epoch'), "
                    "or 'step' if it counts optimizer steps"
                )
            raise TypeError(f"expected callbacks, got {got}. Pass objects of subclasses of fit_core.Callback. {_ORDER}")
    return result


def metrics(model: Any, criterion: Any, metrics: Iterable[Any]) -> None:
    """Check that metrics take the output first, and agree with model and criterion whether it contains logits.

    Raises:
        TypeError: the `update` of a metric takes the target first.
        ValueError: the criterion expects probabilities, and a metric decides at 0, which they all exceed.
    """
    for metric in metrics:
        check_order("metric", metric)
    last: Any = model[-1] if isinstance(model, nn.Sequential) and len(model) else None
    for loss, layer in ((nn.CrossEntropyLoss, nn.Softmax), (nn.BCEWithLogitsLoss, nn.Sigmoid)):
        if isinstance(criterion, loss) and isinstance(last, layer):
            warnings.warn(
                f"{loss.__name__} contains the {layer.__name__.lower()}, and the model ends with another one, so it "
                f"learns badly. Leave nn.{layer.__name__} out of the model",
                stacklevel=3,
            )
    if not isinstance(criterion, nn.BCELoss) and criterion is not nn.functional.binary_cross_entropy:
        return
    for metric in metrics:
        if getattr(metric, "threshold", None) == 0:
            name = type(metric).__name__
            raise ValueError(
                f"expected {name} to decide at 0.5, as the criterion expects probabilities, got threshold=0. Pass "
                f"{name}(..., threshold=0.5), or use nn.BCEWithLogitsLoss() and no sigmoid in the model"
            )


def device(model: nn.Module, criterion: Any) -> torch.device:
    """Return the device of the model, and of the criterion if it has parameters or buffers. By default the CPU.

    Raises:
        ValueError: the model is on several devices, or the criterion is on another one than the model.
    """
    of_model = common_device(model, "model") or torch.device("cpu")
    of_criterion = common_device(criterion, "criterion") if isinstance(criterion, nn.Module) else None
    if of_criterion is not None and of_criterion != of_model:
        raise ValueError(
            f"expected the criterion on the model's device {of_model}, got it on {of_criterion}. "
            f'Move it: criterion.to("{of_model}")'
        )
    return of_model


def _left_out(optimizer: torch.optim.Optimizer, model: nn.Module, criterion: Any) -> tuple[list[str], int]:
    """Return the names of trainable parameters that the optimizer does not have, and how many are trainable.

    Raises:
        ValueError: it has none of the model's.
    """
    reshard(model)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trainable and not any(id(parameter) in held for parameter in trainable.values()):
        raise ValueError(
            f"expected an optimizer of the model's {len(trainable)} trainable parameters, got one that has none of "
            "them. Create it from this model's parameters(), after the model is built and moved to its device"
        )
    if isinstance(criterion, nn.Module):
        own = criterion.named_parameters()
        trainable |= {f"criterion.{name}": parameter for name, parameter in own if parameter.requires_grad}
    return [name for name, parameter in trainable.items() if id(parameter) not in held], len(trainable)


def loader(name: str, value: Any, steps: int | None, *, passes: int = 1) -> None:
    """Check that a loader can be iterated as often as needed and is not empty. On several processes one may be empty.

    Raises:
        TypeError: it is not an iterable of batches.
        ValueError: it is empty, would make batches of batches, or is read more than once and can be read only once.
    """
    at_least_one(steps=steps)
    wrap = _how_to_wrap(value, ", shuffle=True" if name == "train_loader" else "")
    if wrap:
        raise TypeError(f"expected {name} to be a DataLoader or another iterable of batches, got {wrap}")
    if (
        isinstance(value, DataLoader)
        and isinstance(value.sampler, BatchSampler)
        and value.batch_size is not None
        and value.collate_fn is default_collate
    ):
        raise ValueError(
            f"expected {name} with batch_size=None, as its sampler yields batches, got batch_size={value.batch_size}. "
            "Write DataLoader(dataset, batch_size=None, sampler=sampler)"
        )
    if length(value) == 0 and rank_and_world_size()[1] == 1:
        raise ValueError(why_empty(value, name))
    if passes > 1 and steps is None and isinstance(value, Iterator):
        raise ValueError(
            f"expected {name} to be an iterable for {passes} passes, got a {type(value).__name__}, which can be read "
            "only once. Pass a list, a DataLoader, or an object whose __iter__ starts from scratch. If it is endless, "
            "pass steps_per_epoch, the batches of an epoch (val_steps for validation)"
        )


def _how_to_wrap(value: Any, shuffle: str) -> str | None:
    """Return the kind of an object that is not a loader and the line to type, or None for a loader."""
    kind = type(value).__name__
    if isinstance(value, IterableDataset):
        return (
            f"{kind}, a dataset. Wrap it: DataLoader(dataset, batch_size=32), "
            "or DataLoader(dataset, batch_size=None) if it yields whole batches"
        )
    if isinstance(value, Dataset):
        return f"{kind}, a dataset. Wrap it: DataLoader(dataset, batch_size=32{shuffle})"
    parts = value if type(value) is tuple and len(value) == 2 and _differ(*value) else (value,)
    if all(isinstance(part, Tensor) or hasattr(part, "__array__") for part in parts):
        kind = " and ".join(type(part).__name__ for part in parts)
        tensors = all(isinstance(part, Tensor) for part in parts)
        first = "" if tensors else "Convert the arrays to tensors, torch.as_tensor(array). "
        return (
            f"{kind}. {first}Wrap them: DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True) to "
            "train, without shuffle to validate, DataLoader(inputs, batch_size=256) to predict"
        )
    if isinstance(value, (str, bytes, Mapping)):
        return kind
    if not isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        return kind
    return None


def _differ(first: Any, second: Any) -> bool:
    """Return whether two arrays are (x, y) of Keras, and not two batches, which differ in their length only."""
    shapes = (getattr(array, "shape", ())[1:] for array in (first, second))
    return next(shapes) != next(shapes) or getattr(first, "dtype", None) != getattr(second, "dtype", None)


def can_train(state: RunnerState) -> None:
    """Check that this Runner is not training already, and that the optimizer has what is to train.

    A layer may have been replaced or unfrozen since the Runner was made. If it is not in the optimizer, warn.

    Raises:
        RuntimeError: `fit` was called inside a hook of its own run, or by a second thread.
        ValueError: everything is frozen, or the optimizer has none of the model's parameters.
    """
    if state.status == "running":
        raise RuntimeError(
            "expected a Runner that is not training, got a call of fit inside a run of it. A hook may call evaluate "
            "and predict. For another fit, or one in another thread, create another Runner"
        )
    if not any(parameter.requires_grad for group in state.optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            "expected a parameter of the optimizer that requires grad, got only frozen ones. Unfreeze the parameters "
            "to train: model.requires_grad_(True). evaluate and predict accept a frozen model"
        )
    missing, trainable = _left_out(state.optimizer, state.model, state.criterion)
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        warnings.warn(
            f"the optimizer does not have {len(missing)} of {trainable} trainable parameters, which will not train: "
            f"{names}. Add them to the optimizer, or freeze them with requires_grad_(False)",
            stacklevel=3,
        )


def fit(stream: Stream, epochs: int, val_loader: Any, val_steps: int | None, validate_every: int) -> None:
    """Check the arguments of `Runner.fit`, and that the training loader is as long on every process.

    Processes whose loaders differ would wait for each other forever, so they exchange their lengths here.

    Raises:
        TypeError: one has the wrong type.
        ValueError: one is out of range, or the lengths differ, which raises on every process.
    """
    if getattr(epochs, "ndim", 0):
        raise TypeError(f"expected epochs to be a whole number, got {type(epochs).__name__}. {ONE_LOADER}")
    if isinstance(epochs, Iterable) and not isinstance(epochs, (str, Tensor)):
        kind = type(epochs).__name__
        raise TypeError(
            f"expected epochs to be a whole number, got {kind}. Pass it by name: fit(train_loader, val_loader=...)"
        )
    _required(epochs=epochs, validate_every=validate_every)
    at_least_one(steps_per_epoch=stream.steps, val_steps=val_steps)
    loader("train_loader", stream.loader, stream.steps, passes=epochs)
    if val_loader is not None:
        loader("val_loader", val_loader, val_steps, passes=epochs // validate_every)
        if validate_every > epochs:
            text = f"val_loader is not used, because validate_every={validate_every} is above epochs={epochs}"
            warnings.warn(text, stacklevel=3)
    elif val_steps is not None or validate_every != 1:
        name = "validate_every" if val_steps is None else "val_steps"
        warnings.warn(f"{name} has no effect without a val_loader. Pass val_loader=...", stacklevel=3)
    if has_process_group():
        sizes = gather("the start of fit", stream.size)
        if len(set(sizes)) > 1:
            counts = ", ".join(f"rank {rank}: {'no len' if size is None else size}" for rank, size in enumerate(sizes))
            raise ValueError(
                f"expected as many training batches on every process, got {counts}, which would hang. "
                "Use fit_distributed.shard(loader), or pass steps_per_epoch"
            )
    if stream.size == 0:
        raise ValueError(why_empty(stream.loader, "train_loader"))
