"""Summarise a model in a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fit_core import Runner, unwrap
from torch import Tensor, nn

from .lazy import refuse_lazy
from .numbers import file_size

__all__ = ["Summary", "summary"]


class Summary(str):
    """Text that a prompt and a notebook show as it is."""

    def __repr__(self) -> str:
        return str(self)


def summary(model: nn.Module | Runner, input: Any = None) -> Summary:
    """Return the parameters of a model, in all and by top-level module, and what is frozen.

    For a Runner, the first line also shows the optimizer, the loss, the device and autocast. With an input, each line
    shows the shape of the module's output. For all layers at any depth use torchinfo.

    Args:
        model: the model, or the Runner that trains it.
        input: a batch of inputs on the model's device. The model is run on it once, in eval mode and without gradients.

    Raises:
        ValueError: the model is lazy, and without an input its shapes are unknown.

    Examples:
        >>> print(summary(model, torch.zeros(1, 40)))
        Sequential: 5210 parameters (20.8 kB), all trainable, float32 on cpu
          0  Linear         4100  (1, 100)
          1  ReLU              0  (1, 100)
          2  Linear         1110  (1, 10)
    """
    lines = []
    if isinstance(model, Runner):
        lines, model = [repr(model).splitlines()[0]], model.state.model
    bare = unwrap(model)
    shapes = {} if input is None else output_shapes(bare, input)
    refuse_lazy(bare, "summary", "Pass an input: summary(model, input)")
    lines.append(f"{type(bare).__name__}: {describe(list(bare.parameters()))}")
    rows = []
    for name, child in bare.named_children():
        frozen = share_frozen(list(child.parameters()))
        rows.append((name, type(child).__name__, str(count(child.parameters())), shapes.get(name, ""), frozen))
    own = [parameter for name, parameter in bare.named_parameters() if "." not in name]
    if own and rows:
        rows.append(("", "its own", str(count(own)), "", share_frozen(own)))
    name_width, kind_width, count_width, shape_width = (
        max((len(row[column]) for row in rows), default=0) for column in range(4)
    )
    for name, kind, number, shape, frozen in rows:
        line = (
            f"  {name:<{name_width}}  {kind:<{kind_width}}  {number:>{count_width}}  {shape:<{shape_width}}  {frozen}"
        )
        lines.append(line.rstrip())
    return Summary("\n".join(lines))


def describe(parameters: list[Tensor]) -> str:
    """Return the number of parameters, their size, which of them are trained, and dtype and device."""
    if not parameters:
        return "no parameters"
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    frozen = count(parameter for parameter in parameters if not parameter.requires_grad)
    total = count(parameters)
    trained = f"{total - frozen} trainable, {frozen} frozen" if frozen else "all trainable"
    dtypes = ", ".join(dict.fromkeys(str(parameter.dtype).removeprefix("torch.") for parameter in parameters))
    devices = ", ".join(dict.fromkeys(str(parameter.device) for parameter in parameters))
    return f"{total} parameters ({file_size(size)}), {trained}, {dtypes} on {devices}"


def count(parameters: Iterable[Tensor]) -> int:
    """Return the number of values in the parameters."""
    return sum(parameter.numel() for parameter in parameters)


def share_frozen(parameters: list[Tensor]) -> str:
    """Return `frozen` if all parameters are, and their number if some are."""
    frozen = count(parameter for parameter in parameters if not parameter.requires_grad)
    return "" if not frozen else "frozen" if frozen == count(parameters) else f"{frozen} frozen"


def output_shapes(model: nn.Module, input: Any) -> dict[str, str]:
    """Return the shape of what each top-level module returns. One that is called more than once shows the last."""
    shapes: dict[str, str] = {}

    def watch(name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            shapes[name] = str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__

        return note

    hooks = [child.register_forward_hook(watch(name)) for name, child in model.named_children()]
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng():
            model(input)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put each module into eval mode, and back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
