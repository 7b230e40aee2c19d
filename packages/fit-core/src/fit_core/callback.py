"""The contract of callbacks: which hooks there are, and the order in which the loop calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .state import RunnerState

__all__ = ["HOOKS", "LIFECYCLE", "Callback", "Hook", "hooks_of"]

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
"""All hooks in the order of a run, indented by what runs inside what."""

HOOKS = tuple(dict.fromkeys(LIFECYCLE.split()))
"""The names of all hooks."""


class Callback:
    """Base of everything that watches or steers a run. Override the hooks that you want, leave the rest.

    Each hook takes the :class:`~fit_core.RunnerState` and returns nothing. The callbacks of a run are called in
    the order of their list. A hook that nobody overrides costs nothing. This is a whole run::

        on_begin
          on_epoch_begin
            on_loader_begin             training, then validation: state.is_train tells which
              on_batch_begin            state.input and state.target may be replaced here
                on_after_backward       training: after each backward pass; gradients are still scaled (fp16)
                on_before_step          training: once an optimizer step; gradients are unscaled, clip them here
              on_batch_end
              on_checkpoint             training: each callback has seen the batch, save the run here
            on_loader_end               the loader's results are in state.logs
          on_epoch_end                  the epoch's results are complete
          on_checkpoint                 each callback has seen the epoch, save the run here
        on_end                          always, also after an exception (state.error says which)

    ``Runner.evaluate`` and ``Runner.predict`` call the loader and batch hooks only.

    A callback with a memory defines ``state_dict()`` and ``load_state_dict(state_dict)``; they are saved and
    restored with the run. ``load_state_dict`` is called after the ``on_begin`` of all callbacks. What
    ``state_dict`` returns must pass ``torch.load(..., weights_only=True)``: tensors, numbers, strings,
    and lists, tuples and dicts of them.

    Example:
        A complete callback that ends the run after a number of seconds::

            class TimeLimit(Callback):
                def __init__(self, seconds):
                    self.seconds = seconds

                def on_begin(self, state):
                    self.start = time.monotonic()

                def on_batch_end(self, state):
                    state.should_stop = time.monotonic() - self.start > self.seconds

    Raises:
        TypeError: when a subclass is made that defines an ``on_...`` method which is no hook.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name.startswith("on_") and callable(value) and name not in HOOKS:
                near = get_close_matches(name, HOOKS, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise TypeError(
                    f"unknown hook {name} in {cls.__name__}: {hint}hooks are {', '.join(HOOKS)}. "
                    "Give a method that is no hook another first word than on_."
                )

    def on_begin(self, state: RunnerState) -> None:
        """A run of ``Runner.fit`` begins."""

    def on_epoch_begin(self, state: RunnerState) -> None:
        """An epoch begins."""

    def on_loader_begin(self, state: RunnerState) -> None:
        """A loader is about to give its batches; the model is in the right mode, meters are empty."""

    def on_batch_begin(self, state: RunnerState) -> None:
        """A batch is on the device; ``state.input`` and ``state.target`` may be replaced."""

    def on_after_backward(self, state: RunnerState) -> None:
        """Gradients of a training batch are there; in fp16 they are still scaled."""

    def on_before_step(self, state: RunnerState) -> None:
        """The optimizer is about to step; gradients are whole and unscaled."""

    def on_batch_end(self, state: RunnerState) -> None:
        """A batch is done; ``state.output`` and ``state.loss`` are its results."""

    def on_loader_end(self, state: RunnerState) -> None:
        """A loader is done; its results, over all processes, are in ``state.logs``."""

    def on_epoch_end(self, state: RunnerState) -> None:
        """An epoch is done, with its validation if it had one."""

    def on_checkpoint(self, state: RunnerState) -> None:
        """Every callback has seen this training batch, or this epoch: ``state.state_dict()`` is exact here."""

    def on_end(self, state: RunnerState) -> None:
        """The run is over. Called always, also for a callback whose ``on_begin`` was not reached."""


Hook = Callable[["RunnerState"], None]


def hooks_of(callbacks: Iterable[Callback]) -> dict[str, list[Hook]]:
    """The bound methods to call at each hook: of every callback, in order, those that it overrides."""

    def overridden(callback: Callback, hook: str) -> bool:
        return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)

    return {hook: [getattr(one, hook) for one in callbacks if overridden(one, hook)] for hook in HOOKS}
