"""Say why a step cannot be one graph, before anything is recorded."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fit_core
import torch
from fit_core import Callback, Runner, RunnerState
from torch import nn
from torch.nn.parameter import is_lazy

from . import cuda
from .optimizer import why_not_optimizer
from .undo import NumberIsReadError

__all__ = ["marked_callbacks", "others_have", "why_failed", "why_not"]

STEP_HOOKS = ("on_after_backward", "on_before_step")


def why_not(state: RunnerState, step: Callable[[], None]) -> str | None:
    """Return why a step cannot be one graph, None if it may be."""
    if getattr(step, "__func__", None) is not Runner._make_step:
        return "it is not the Runner's own"
    if state.device.type not in ("cpu", "cuda"):
        return f"graphs are recorded on CUDA and on a CPU, not on {state.device.type}"
    if state.world_size > 1:
        return f"{state.world_size} processes train together"
    if state.grad_scaler.is_enabled() and not cuda.captures(state.device):
        return "the gradient scaler of fp16 reads a number at each step. Use bf16"
    for callback in state.callbacks:
        for hook in STEP_HOOKS:
            if _overrides(callback, hook) and not getattr(callback, "capturable", False):
                return (
                    f"{type(callback).__name__}.{hook} is not marked with capturable = True, which says that it "
                    "changes nothing but tensors, in place"
                )
    for name, module in _modules(state).items():
        if getattr(module, "sparse", False):
            return f"the gradient of {name} is sparse"
        if any(is_lazy(tensor) for tensor in (*module.parameters(False), *module.buffers(False))):
            return f"{name} is lazy. Run a batch through the model before fit"
    return why_not_optimizer(state.optimizer)


def why_failed(error: Exception) -> str:
    """Return why a step could not be recorded, and the line of the user's code that was the last to run."""
    message = next(iter(str(error).strip().splitlines()), "")[:200]
    reads = (
        isinstance(error, NumberIsReadError)
        or "trying to get value out of a tracing tensor" in message
        or "data-dependent" in message
    )
    ours = str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), str(Path(fit_core.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((*ours, "<"))]
    place = f" ({Path(theirs[-1].filename).name}:{theirs[-1].lineno})" if theirs else ""
    if reads:
        return f"it reads a number from a tensor{place}, which a graph would freeze"
    return f"recording it failed{place}: {type(error).__name__}: {message}"


def others_have(state: RunnerState, hooks: Iterable[str]) -> bool:
    """Return whether a callback of another package has one of these hooks. It may keep or change anything there."""
    others = [callback for callback in state.callbacks if type(callback).__module__.split(".")[0] != "fit_callbacks"]
    return any(_overrides(callback, hook) for callback in others for hook in hooks)


def marked_callbacks(state: RunnerState) -> dict[str, Any]:
    """Return the callbacks that take part in the step, by name."""
    marked = [callback for callback in state.callbacks if any(_overrides(callback, hook) for hook in STEP_HOOKS)]
    return {
        f"{type(callback).__name__} {number}".removesuffix(" 0"): callback for number, callback in enumerate(marked)
    }


def _overrides(callback: Callback, hook: str) -> bool:
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def _modules(state: RunnerState) -> dict[str, nn.Module]:
    """Return the modules that take part in the step, by name."""
    parts = {"model": state.model, "criterion": state.criterion}
    return {
        f"{name}.{path}".rstrip("."): module
        for name, part in parts.items()
        if isinstance(part, nn.Module)
        for path, module in part.named_modules()
    }
