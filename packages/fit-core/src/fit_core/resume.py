"""A run as a dict, and back: what makes a run that was stopped end with the same bits as one that was not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .metric import metric_name
from .stream import get_rng, set_rng

if TYPE_CHECKING:
    from .state import RunnerState

__all__ = ["FORMAT", "go_on", "load", "of_this_rank", "save"]

FORMAT = 1
"""The number of the layout that :func:`save` writes."""


def save(state: RunnerState) -> dict[str, Any]:
    """See :meth:`RunnerState.state_dict`."""
    return {
        "format": FORMAT,
        "model": {_bare_name(name): value for name, value in _bare(state._trained).state_dict().items()},
        "optimizer": state.optimizer.state_dict(),
        "grad_scaler": state.grad_scaler.state_dict(),
        "epoch": state.epoch,
        "global_step": state.global_step,
        "samples": state.samples,
        "logs": dict(state.logs),
        "history": [dict(row) for row in state.history],
        "settings": _settings(state),
        "callbacks": {name: callback.state_dict() for name, callback in _with_memory(state)},
        "ranks": [state._trained_to_end or of_this_rank(state)],
    }


def of_this_rank(state: RunnerState) -> dict[str, Any]:
    """The part of a run that differs from process to process."""
    if state._stream is None:
        raise RuntimeError("there is no run to save yet: the state of a run exists once fit has begun")
    # Not asked of the window, which a step of the user's own may leave alone.
    is_inside_window = state._stream.step % state.accumulate_steps and not state._stream.last
    remembering = [metric for metric in state.metrics if hasattr(metric, "state_dict")]
    return {
        "rng": get_rng(state.device),
        "stream": state._stream.state_dict(),
        "window": state._window.state_dict(),
        "gradients": [parameter.grad for parameter in state._parameters()] if is_inside_window else [],
        "loss_meter": state.loss_meter.state_dict(),
        "metrics": {metric_name(metric): dict(metric.state_dict()) for metric in remembering},
    }


def load(state: RunnerState, saved: dict[str, Any]) -> None:
    """Restore what all processes share. See :meth:`RunnerState.load_state_dict`."""
    if saved["format"] > FORMAT:
        raise ValueError(
            f"the state was written by format {saved['format']}, this reads up to {FORMAT}: upgrade fit-core"
        )
    model = _bare(state._trained)
    own = model.state_dict()
    _check_same_model(saved["model"], {_bare_name(name): value for name, value in own.items()})
    state.optimizer.load_state_dict(saved["optimizer"])
    model.load_state_dict({name: saved["model"][_bare_name(name)] for name in own})
    state.grad_scaler.load_state_dict(saved["grad_scaler"])
    state.epoch, state.global_step, state.samples = saved["epoch"], saved["global_step"], saved["samples"]
    state.logs, state.history = dict(saved["logs"]), [dict(row) for row in saved["history"]]


def go_on(state: RunnerState, saved: dict[str, Any]) -> None:
    """Restore callbacks, and what belongs to this process, in a run that has begun."""
    for name, callback in _with_memory(state):
        if name in saved["callbacks"]:
            callback.load_state_dict(saved["callbacks"][name])
    then, now = saved["settings"], _settings(state)
    changed = [f"{name} {then[name]} -> {now[name]}" for name in then if then[name] != now[name]]
    if changed:
        warnings.warn(f"the run is resumed with other settings: {', '.join(changed)}", stacklevel=4)
    if len(saved["ranks"]) != state.world_size:
        warnings.warn(
            f"the state was saved by {len(saved['ranks'])} processes and is resumed by {state.world_size}: "
            "random states cannot be restored, and an interrupted epoch starts over",
            stacklevel=4,
        )
        return
    rank = saved["ranks"][state.rank]
    assert state._stream is not None
    state._stream.skipping = state.skipping
    state._stream.load_state_dict(rank["stream"], rank["rng"])
    state._window.load_state_dict(rank["window"])
    for parameter, gradient in zip(state._parameters(), rank["gradients"], strict=False):
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    state.loss_meter.load_state_dict(rank["loss_meter"])
    for metric in state.metrics:
        if hasattr(metric, "load_state_dict") and (values := rank["metrics"].get(metric_name(metric))):
            metric.load_state_dict(values)
    forgetful = [metric_name(metric) for metric in state.metrics if not hasattr(metric, "state_dict")]
    if forgetful and state._stream.step:
        warnings.warn(
            f"{', '.join(forgetful)} of the interrupted epoch will miss the batches before the interruption: "
            "give the metric state_dict() and load_state_dict()",
            stacklevel=4,
        )
    set_rng(rank["rng"], state.device)


def _settings(state: RunnerState) -> dict[str, Any]:
    """What a resumed run should have in common with the first."""
    batch_size = getattr(state._stream and state._stream.loader, "batch_size", None)
    return {
        "epochs": state.num_epochs,
        "batches an epoch": state._stream.size if state._stream else None,
        "batch_size": batch_size if isinstance(batch_size, int) else None,
        "accumulate_steps": state.accumulate_steps,
    }


def _with_memory(state: RunnerState) -> Iterator[tuple[str, Any]]:
    """The callbacks that have a state, by class name; the second of a class is ``Name.1``."""
    seen: dict[str, int] = {}
    for callback in state.callbacks:
        name = type(callback).__name__
        count = seen[name] = seen.get(name, -1) + 1
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            yield (f"{name}.{count}" if count else name), callback


def _bare(model: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel and torch.compile."""
    while hasattr(model, "_orig_mod") or isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    return model


def _bare_name(name: str) -> str:
    """The name of an entry without the marks of submodules that were compiled by themselves."""
    return name.replace("_orig_mod.", "")


def _check_same_model(saved: dict[str, Any], own: dict[str, Any]) -> None:
    def shape(value: Any) -> tuple[int, ...]:
        return tuple(value.shape) if isinstance(value, Tensor) else ()

    both = [name for name in own if name in saved]
    wrong = {
        "missing": [name for name in own if name not in saved],
        "unexpected": [name for name in saved if name not in own],
        "shape": [
            f"{name} {shape(saved[name])} -> {shape(own[name])}"
            for name in both
            if shape(saved[name]) != shape(own[name])
        ],
    }
    if any(wrong.values()):
        lines = "".join(f"\n  {kind}: {', '.join(names)}" for kind, names in wrong.items() if names)
        raise ValueError(f"the state is of another model; nothing was loaded:{lines}")
