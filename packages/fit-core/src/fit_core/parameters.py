"""Check the optimizer: its parameters by name, which are saved with a run and compared on resume."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from .models import bare_name, unwrap

__all__ = [
    "check_frozen_since_wrapped",
    "check_optimizer",
    "check_steps_alone",
    "describe",
    "given_settings",
    "restore_frozen",
    "warn_of_other_settings",
]

_SETTINGS = ("lr", "weight_decay", "momentum", "betas")


def check_steps_alone(optimizer: Any) -> None:
    """Check that an optimizer, and each one inside it, can step without computing the loss again.

    Raises:
        ValueError: one needs a closure, as LBFGS does. The message says how to pass it.
    """
    for part in (optimizer, *getattr(optimizer, "optimizers", ())):
        step = getattr(type(part), "step", part.step)  # not the wrapper of a scheduler
        closure = inspect.signature(step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"expected an optimizer that steps without a closure, got {type(part).__name__}, which computes the "
                "loss several times per step. Override Runner._make_step, and call state.optimizer.step(closure) in it"
            )


def check_frozen_since_wrapped(modules: Iterable[Any]) -> None:
    """Check that DistributedDataParallel averages the gradients of all trainable parameters.

    It decides which ones when it is created.

    Raises:
        ValueError: parameters were frozen or unfrozen since then, and it does not find unused ones.
    """
    for module in modules:
        if not isinstance(module, nn.parallel.DistributedDataParallel):
            continue
        made = module._get_ddp_logging_data()  # type: ignore[no-untyped-call]  # private
        averaged, size = made["num_parameter_tensors"], made["total_parameter_size_bytes"]
        ignored = module.parameters_to_ignore
        training = [p for name, p in module.module.named_parameters() if p.requires_grad and name not in ignored]
        change = sum(parameter.numel() * parameter.element_size() for parameter in training) - size
        if len(training) > averaged or change > 0:
            raise ValueError(
                f"expected DistributedDataParallel to average the gradients of all {len(training)} trainable "
                f"parameters, got {averaged}, since the others were frozen when it was created. They would drift apart "
                "between the processes. Wrap the model before you freeze a part of it: "
                "parallel(model, find_unused_parameters=True)"
            )
        if (len(training) < averaged or change < 0) and not module.find_unused_parameters:
            raise ValueError(
                f"expected DistributedDataParallel to wait for the gradients of the {len(training)} trainable "
                f"parameters, got {averaged}, since the others were frozen after it was created. Create it with "
                "parallel(model, find_unused_parameters=True), or freeze them before if they stay frozen"
            )


def describe(optimizer: Any, model: Any, criterion: Any) -> dict[str, Any]:
    """Return the optimizer's class, the names of the parameters in each group, and the names of those that are frozen.

    Parameters of neither the model nor the criterion have an empty name.
    """
    named = dict(_named(model, criterion))
    names = {parameter: name for name, parameter in named.items()}
    return {
        "class": type(optimizer).__name__,
        "groups": [[names.get(parameter, "") for parameter in group["params"]] for group in optimizer.param_groups],
        "frozen": [name for name, parameter in named.items() if not parameter.requires_grad],
    }


def check_optimizer(saved: Mapping[str, Any], optimizer: Any, model: Any, criterion: Any) -> None:
    """Check that an optimizer is of the saved class and has the saved parameters in the saved order.

    Groups that are missing at the end are added, since the run had added them with `add_param_group`.

    Raises:
        ValueError: it is another optimizer, or has other parameters. Nothing is changed then.
    """
    own, groups = describe(optimizer, model, criterion), saved["groups"]
    if own["class"] != saved["class"]:
        raise ValueError(
            f"expected the optimizer of the state, {saved['class']}, got {own['class']}. Use {saved['class']}, "
            'or start a new run from the weights alone: model.load_state_dict(state["model"])'
        )
    for number, (then, now) in enumerate(zip(groups, own["groups"], strict=False)):
        differ = [(old, new) for old, new in zip_longest(then, now, fillvalue="nothing") if old != new]
        if differ:
            pairs = ", ".join(f"{old or '?'} -> {new or '?'}" for old, new in differ[:5])
            raise ValueError(
                f"expected an optimizer of the same parameters as in the state, got others: in group {number}, "
                f"{len(differ)} of {len(then)} differ ({pairs}{', ...' if len(differ) > 5 else ''}). "
                "Create it with the same parameters in the same order"
            )
    if len(own["groups"]) > len(groups):
        raise ValueError(
            f"expected {len(groups)} parameter groups as in the state, got {len(own['groups'])}. Create the optimizer "
            f"without {', '.join(own['groups'][len(groups)])}, and call add_param_group after the resume"
        )
    parameters, added = dict(_named(model, criterion)), groups[len(own["groups"]) :]
    held = {name for names in own["groups"] for name in names}
    if unknown := [name or "?" for names in added for name in names if name not in parameters or name in held]:
        raise ValueError(
            f"expected {len(groups)} parameter groups as in the state, got {len(own['groups'])}. Call add_param_group "
            f"before the state is loaded, with the missing parameters: {', '.join(unknown)}"
        )
    for names in added:
        optimizer.add_param_group({"params": [parameters[name] for name in names]})


def given_settings(optimizer: Any, model: Any, criterion: Any) -> dict[str, Any]:
    """Return the settings of a program before a run: learning rates and such of each group, and what is frozen."""
    groups = [{name: group[name] for name in _SETTINGS if name in group} for group in optimizer.param_groups]
    settings = {
        f"{name}{f' of group {number}' if number else ''}": _plain(value)
        for number, group in enumerate(groups)
        for name, value in group.items()
    }
    return {**settings, "frozen": describe(optimizer, model, criterion)["frozen"]}


def warn_of_other_settings(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Warn about settings of the program that a resumed run replaces with the saved ones."""
    changed = [name for name in saved if name in given and saved[name] != given[name]]
    if changed:
        values = ", ".join(f"{name} {_shown(saved[name])} (now {_shown(given[name])})" for name in changed)
        warnings.warn(
            f"the run is resumed with its original settings: {values}. To change one, set it in a callback's "
            "on_epoch_begin, or start a new run from the weights",
            stacklevel=4,
        )


def restore_frozen(frozen: list[str], model: Any, criterion: Any) -> None:
    """Freeze the parameters that were frozen when a state was saved, and let the others train."""
    held = set(frozen)
    for name, parameter in _named(model, criterion):
        if parameter.requires_grad == (name in held):
            parameter.requires_grad = name not in held


def _named(model: Any, criterion: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of the model, then those of the criterion, under their names in a state."""
    for prefix, module in (("", unwrap(model)), ("criterion.", unwrap(criterion))):
        if isinstance(module, nn.Module):
            for name, parameter in module.named_parameters():
                yield prefix + bare_name(name), parameter


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, torch.Tensor) else value


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return ", ".join(value[:3]) + (f" and {len(value) - 3} more" if len(value) > 3 else "")
    return "nothing" if value == [] else str(value)
