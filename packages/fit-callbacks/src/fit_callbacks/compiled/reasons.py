"""Say why a step cannot be one graph, before anything is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fit_core import Callback, Runner, RunnerState
from torch import nn

from .optimizer import why_not_optimizer

__all__ = ["marked_callbacks", "modules_of", "why_not"]

STEP_HOOKS = ("on_after_backward", "on_before_step")


def why_not(state: RunnerState, step: Callable[[], None]) -> str | None:
    """Return why a step cannot be one graph, None if it may be."""
    if getattr(step, "__func__", None) is not Runner._make_step:
        return "it is not the Runner's own"
    if state.device.type not in ("cpu", "cuda"):
        return f"graphs are recorded on CUDA and on a CPU, not on {state.device.type}"
    if state.world_size > 1:
        return f"{state.world_size} processes train together"
    if state.grad_scaler.is_enabled() and state.device.type == "cpu":
        return "the gradient scaler of fp16 reads a number at each step. Use bf16"
    for callback in state.callbacks:
        for hook in STEP_HOOKS:
            if overrides(callback, hook) and not getattr(callback, "capturable", False):
                return (
                    f"{type(callback).__name__}.{hook} is not marked with capturable = True, which says that it "
                    "changes nothing but tensors, in place"
                )
    for name, module in modules_of(state).items():
        if getattr(module, "sparse", False):
            return f"the gradient of {name} is sparse"
    return why_not_optimizer(state.optimizer)


def overrides(callback: Callback, hook: str) -> bool:
    """Return whether a callback has a hook of its own."""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def marked_callbacks(state: RunnerState) -> dict[str, Any]:
    """Return the callbacks that take part in the step, by name."""
    return {
        f"{type(callback).__name__}": callback
        for callback in state.callbacks
        if any(overrides(callback, hook) for hook in STEP_HOOKS)
    }


def modules_of(state: RunnerState) -> dict[str, nn.Module]:
    """Return the modules that take part in the step, by name."""
    parts = {"model": state.model, "criterion": state.criterion}
    return {
        f"{name}.{path}".rstrip("."): module
        for name, part in parts.items()
        if isinstance(part, nn.Module)
        for path, module in part.named_modules()
    }
