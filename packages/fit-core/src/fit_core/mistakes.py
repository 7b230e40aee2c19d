"""Say what to type after torch's errors for common mistakes. Called only when a step has raised."""

from __future__ import annotations

import dataclasses
import linecache
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .broadcast import same_shape
from .state import RunnerState

__all__ = ["advice"]

_FIELDS = {field.name for field in dataclasses.fields(RunnerState)}


def advice(error: Exception, state: RunnerState) -> str | None:
    """Return a sentence that ends in what to type, or None if the error is not a known one.

    Args:
        error: raised while the model, the criterion or a hook was called.
        state: the batch on which it was raised.
    """
    message = str(error)
    try:
        if isinstance(error, KeyError) and "logs[" in _line(error):
            names = ", ".join(state.logs) or "none yet, since results are there from on_loader_end on"
            return f"expected a name in state.logs, got {message}. There are: {names}"
        if isinstance(error, AttributeError) and getattr(error.obj, "state", None) is state and error.name in _FIELDS:
            return f"expected self.state.{error.name}, got self.{error.name}. All about a run is in self.state"
        if "Classification metrics can't handle" in message:
            return (
                "expected predicted classes for scikit-learn, got the model's scores. Wrap the metric: lambda output, "
                "target: accuracy_score(target, output.argmax(1))"
            )
        if "device-side assert" in message:
            return (
                "expected labels and indices in range, got one outside. Run one batch on the CPU, which names it: "
                'move the model there with model.to("cpu")'
            )
        if "CUDAGraphs that has been overwritten" in message and state.accumulate_steps > 1:
            return (
                'expected gradients that stay until the window ends, got those of mode="reduce-overhead", which each '
                "batch overwrites. Compile the model without this mode, or use fit_callbacks.CompiledStep"
            )
        groups = state.optimizer.param_groups
        if "got NoneType" in message and any(group.get("fused") and group.get("momentum") for group in groups):
            return (
                "expected momentum for each parameter, which the fused kernel of SGD needs after its first step, got "
                "none for a layer that was unfrozen later. Create the optimizer with fused=False"
            )
        if "same device" in message or "expected device" in message:
            return (
                f"expected every tensor on {state.device}, got one on another device. Make it a buffer, which moves "
                "with its module: self.register_buffer(name, tensor), or create it with device=input.device"
            )
        if state.output is None:
            return _of_model(message, state.model, state.input)
        if state.loss is None:
            return _of_criterion(message, state.criterion, state.output, state.target)
    except Exception:  # The values of a device that has failed cannot be read.
        return None
    return None


def _of_model(message: str, model: torch.nn.Module, input: Any) -> str | None:
    if "more than 1 value per channel" in message:
        return "expected two samples or more for batch norm, got a batch of 1. Pass drop_last=True to the loader"
    if not isinstance(input, Tensor):
        return None
    if "index out of range" in message and not input.is_floating_point():
        low, high = int(input.min()), int(input.max())
        return (
            f"expected indices below the size of the embedding, got {low}..{high}. Correct them, or enlarge it: "
            f"nn.Embedding({high + 1}, ...)"
        )
    if "'indices'" in message and input.is_floating_point():
        return f"expected an input of indices, got {input.dtype}. Convert it in the dataset: input.long()"
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), input.dtype)
    if input.dtype != weights and "type" in message:
        return f"expected an input of {weights}, as the weights are, got {input.dtype}. Convert it: input.to({weights})"
    return None


def _of_criterion(message: str, criterion: Any, output: Any, target: Any) -> str | None:
    if isinstance(output, (tuple, list, Mapping)):
        part = next(iter(output)) if isinstance(output, Mapping) else 0
        return (
            f"expected one tensor as output, got a {type(output).__name__} of {len(output)}. Pick the part for the "
            f"criterion in Runner.forward: state.output = state.model(state.input)[{part!r}]"
        )
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return None
    if "between 0 and 1" in message:
        return "expected probabilities, got an output outside of 0..1. Use nn.BCEWithLogitsLoss(), which expects logits"
    if "out of bounds" in message:
        return _of_labels(criterion, output, target)
    without_classes = output.shape[:1] + output.shape[2:]
    shapes = f"{tuple(output.shape)} and {tuple(target.shape)}"
    if "type" in message and target.shape == without_classes and target.dtype != torch.long:
        return f"expected class indices of torch.int64, got {target.dtype}. Convert them in the dataset: target.long()"
    if "type" in message and target.shape == output.shape and not target.is_floating_point():
        return f"expected a floating target of the output's shape, got {target.dtype}. Convert it: target.float()"
    if "target" in message and target.dim() == output.dim() > 1 and target.size(1) == 1 != output.size(1):
        return (
            f"expected class indices without a dimension of classes, got {shapes}. Use target.squeeze(1) in the dataset"
        )
    if "size" in message and (fix := same_shape(output, target)):
        return f"expected output and target of the same shape, got {shapes}. Use {fix} in the dataset"
    return None


def _of_labels(criterion: Any, output: Tensor, target: Tensor) -> str:
    classes = output.size(1) if output.dim() > 1 else output.size(0)
    counted = target[target != getattr(criterion, "ignore_index", -100)]
    low, high = int(counted.min()), int(counted.max())
    advice = f"return {high + 1} classes from the model" if low >= 0 else f"pass ignore_index={low} to the loss"
    got = f"{low}" if low == high else f"{low}..{high}"
    return f"expected labels in 0..{classes - 1}, got {got}. Correct them, or {advice}"


def _line(error: Exception) -> str:
    """Return the line of code that raised an exception, as far as it can be read."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return linecache.getline(traceback.tb_frame.f_code.co_filename, traceback.tb_lineno) if traceback else ""
