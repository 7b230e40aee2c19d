"""Freeze a part of the model, for the whole run or for its first epochs."""

from __future__ import annotations

from collections.abc import Iterable

from fit_core import Callback, RunnerState, unwrap
from torch import nn

from .arguments import check_whole, names_of
from .names import bare_name

__all__ = ["Freeze"]


class Freeze(Callback):
    """Freeze a part of the model, and train it from an epoch on.

    Its parameters do not require grad, and its modules are in eval mode, so that the running statistics of batch norm
    do not change and dropout is off. Pass all parameters that will train to the optimizer. It does not step those
    without a gradient. Parameters that required grad before the run do so again after it.

    With DistributedDataParallel, wrap the model before it is frozen, with `find_unused_parameters=True`.

    Args:
        names: the names of the parameters in the model, or the start of their names, such as `["backbone."]`.
        until: the number of epochs to freeze it. By default the whole run.

    Raises:
        TypeError: `until` is not a whole number.
        ValueError: `until` is below 1, the names do not match any parameter, or the optimizer lacks a parameter that
            will train.

    Examples:
        >>> Freeze(["backbone."], until=3)
        >>> Freeze("embedding")
    """

    def __init__(self, names: str | Iterable[str], until: int | None = None) -> None:
        self.names = names_of("names", names)
        self.until = until
        if until is not None:
            check_whole("until", until, 1)
        self._parameters: list[nn.Parameter] = []
        self._modules: list[nn.Module] = []
        self._trained_before: list[nn.Parameter] = []

    def on_begin(self, state: RunnerState) -> None:
        """Find the parameters, and the modules that contain no others."""
        model = unwrap(state.model)
        named = {bare_name(name): parameter for name, parameter in model.named_parameters()}
        for start in self.names:
            if not any(name.startswith(start) for name in named):
                raise ValueError(
                    f"expected names that match parameters, got {start}. Pass the start of one of {', '.join(named)}"
                )
        found = {name: parameter for name, parameter in named.items() if name.startswith(self.names)}
        if self.until is not None and self.until < state.num_epochs:
            held = {id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]}
            if missing := [name for name, parameter in found.items() if id(parameter) not in held]:
                raise ValueError(
                    f"expected an optimizer of all parameters, got one without {', '.join(missing[:3])}"
                    f"{', ...' if len(missing) > 3 else ''}, which would not train after epoch {self.until}. Create it "
                    "with model.parameters()"
                )
        self._parameters = list(found.values())
        self._trained_before = [parameter for parameter in self._parameters if parameter.requires_grad]
        self._modules = [
            module for name, module in model.named_modules() if f"{bare_name(name)}.".startswith(self.names)
        ]
        self._set(state)

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Freeze the part, or unfreeze it."""
        self._set(state)

    def on_loader_begin(self, state: RunnerState) -> None:
        """Keep frozen modules in eval mode."""
        if state.is_train and self._is_frozen(state):
            for module in self._modules:
                module.training = False

    def on_end(self, state: RunnerState) -> None:
        """Unfreeze all parameters that trained before the run."""
        for parameter in self._trained_before:
            parameter.requires_grad = True
        self._trained_before = []

    def _set(self, state: RunnerState) -> None:
        for parameter in self._parameters:
            parameter.requires_grad = not self._is_frozen(state)  # not requires_grad_(), which lazy ones do not have

    def _is_frozen(self, state: RunnerState) -> bool:
        return self.until is None or state.epoch < self.until
