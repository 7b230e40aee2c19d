"""Define the hooks of callbacks, and the order in which the loop calls them."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .state import RunnerState

__all__ = ["HOOKS", "LIFECYCLE", "Callback"]

LIFECYCLE = """\
on_begin
  on_epoch_begin
    on_loader_begin
      on_batch_begin
        on_after_backward
        on_before_step
      on_batch_end
      on_checkpoint
    on_loader_end
  on_epoch_end
  on_checkpoint
on_end"""
"""All hooks in the order of a run. Indentation shows the nesting."""

HOOKS = tuple(dict.fromkeys(LIFECYCLE.split()))
"""The names of all hooks."""


class Callback:
    """Base class of callbacks. Override the hooks you want.

    Each hook takes the `RunnerState` and returns nothing. The callbacks of a run are called in the order of their list.
    This is a whole run:

    ```text
    on_begin
      on_epoch_begin
        on_loader_begin             training (state.is_train), then validation
          on_batch_begin            state.input, target, batch_size and weight may be set here
            on_after_backward       training: after each backward pass, gradients are still scaled (fp16)
            on_before_step          training: once per optimizer step, gradients are unscaled: clip them here
          on_batch_end
          on_checkpoint             training: every callback has seen the batch, save the run here
        on_loader_end               the loader's results are in state.logs
      on_epoch_end                  the epoch's results are complete
      on_checkpoint                 every callback has seen the epoch, save the run here
    on_end                          always, also after an exception (in state.error)
    ```

    `Runner.evaluate` and `Runner.predict` call the loader and batch hooks only.

    A callback with a state defines `state_dict()` and `load_state_dict(state_dict)`. They are called when the run
    is saved and restored, `load_state_dict` after the `on_begin` of all callbacks. `state_dict` may return what
    `torch.load(..., weights_only=True)` accepts: tensors, numbers, strings, and lists, tuples and dicts of them.

    Examples:
        A complete callback that stops the run after a number of seconds:

        ```python
        class TimeLimit(Callback):
            def __init__(self, seconds):
                self.seconds = seconds

            def on_begin(self, state):
                self.start = time.monotonic()

            def on_batch_end(self, state):
                if time.monotonic() - self.start > self.seconds:
                    state.should_stop = True
        ```

    Raises:
        TypeError: a subclass defines an `on_...` method that is not a hook, or a hook that does not take
            `(self, state)`. Raised when the class is defined.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name.startswith("on_") and callable(value):
                _check_hook(f"{cls.__name__}.{name}", name, value)

    def __repr__(self) -> str:
        """Return the class with its arguments, as far as they are attributes of the same name."""
        arguments = [name for name in inspect.signature(type(self)).parameters if name in vars(self)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r:.60}' for name in arguments)})"

    def on_begin(self, state: RunnerState) -> None:
        """Run at the start of `Runner.fit`."""

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Run at the start of an epoch."""

    def on_loader_begin(self, state: RunnerState) -> None:
        """Run before the first batch of a loader. The model is in the right mode and the meters are empty."""

    def on_batch_begin(self, state: RunnerState) -> None:
        """Run when a batch is on the device. Its input, target, batch_size and weight may be set here."""

    def on_after_backward(self, state: RunnerState) -> None:
        """Run after each backward pass. In fp16 the gradients are still scaled."""

    def on_before_step(self, state: RunnerState) -> None:
        """Run before each optimizer step. The gradients are complete and unscaled."""

    def on_batch_end(self, state: RunnerState) -> None:
        """Run after a batch. `state.output` and `state.loss` are its results."""

    def on_loader_end(self, state: RunnerState) -> None:
        """Run after a loader. Its results, over all processes, are in `state.logs`."""

    def on_epoch_end(self, state: RunnerState) -> None:
        """Run after an epoch, and its validation if it has one."""

    def on_checkpoint(self, state: RunnerState) -> None:
        """Run when every callback has seen a training batch, or an epoch. `state.state_dict()` is exact here."""

    def on_end(self, state: RunnerState) -> None:
        """Run at the end of `Runner.fit`, always, even if this callback's `on_begin` was not reached."""


def _check_hook(place: str, name: str, function: Any) -> None:
    """Refuse a method that looks like a hook and would never be called, or be called wrongly.

    Raises:
        TypeError: the name is not a hook, or the parameters are not `(self, state)`.
    """
    if name not in HOOKS:
        close = get_close_matches(name, HOOKS, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise TypeError(
            f"expected {place} to be a hook, one of {', '.join(HOOKS)}. {hint}"
            "Rename the method, because names that start with on_ are reserved for hooks"
        )
    if not inspect.isfunction(function):
        return
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"expected {place} to be a plain method, got an async function or a generator. Write def {name}"
        )
    parameters = inspect.signature(function).parameters.values()
    is_variadic = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    if (
        not is_variadic
        and [parameter.kind for parameter in parameters] != [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2
    ):
        raise TypeError(
            f"expected {place} to take (self, state), got {inspect.signature(function)}. Everything about the run is "
            "in state, such as state.epoch, state.batch_idx and state.logs"
        )
