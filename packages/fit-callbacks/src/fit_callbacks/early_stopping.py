"""The end of a run that no longer gets better."""

from __future__ import annotations

from typing import Any

from fit_core import Callback, RunnerState

from .monitor import Best, check_monitor, monitored
from .ranks import from_rank_zero, print_line

__all__ = ["EarlyStopping"]


class EarlyStopping(Callback):
    """Ends the run when the monitored value has not improved for ``patience`` epochs, and says so in a line.

    Every process takes the decision of rank 0. Epochs without validation (``validate_every``) do not count; nan and
    infinity are never an improvement.

    Args:
        monitor: a key of the logs, such as ``val/Acc@1``; ``loss`` is ``val/loss``, or ``train/loss`` without
            validation.
        mode: ``min`` where less is better, ``max`` where more is.
        patience: epochs without an improvement after which to stop, 1 or more.
        min_delta: by how much a value must be better to count, 0 or more.

    Raises:
        ValueError: an argument is out of its range; the run has no such value.

    Example:
        >>> EarlyStopping("val/Acc@1", "max", patience=5)
    """

    def __init__(self, monitor: str = "loss", mode: str = "min", *, patience: int = 10, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ValueError(f"patience must be 1 epoch or more, got {patience}")
        self.monitor = monitor
        self.patience = patience
        self.best = Best(mode, min_delta)
        self.waited = 0

    def on_begin(self, state: RunnerState) -> None:
        """A new run has no best value yet; that of a resumed one is restored after this."""
        check_monitor(state, self.monitor)
        self._state = state
        self.best.value, self.waited = None, 0

    def on_epoch_end(self, state: RunnerState) -> None:
        """Compare with the best."""
        value = from_rank_zero(monitored(state, self.monitor))
        if value is None:
            return
        self.waited = 0 if self.best.update(value) else self.waited + 1
        if self.waited >= self.patience:
            state.should_stop = True
            best = "never was a finite number" if self.best.value is None else f"was best at {self.best.value:.6g}"
            print_line(
                state,
                f"EarlyStopping: {self.monitor} {best} and has not improved for {self.patience} epochs; "
                f"the run ends after epoch {state.epoch + 1}",
            )

    def state_dict(self) -> dict[str, Any]:
        """The best value, and the epochs since."""
        return {"best": self.best.state_dict(), "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting there; a run that was stopped stays so, unless ``patience`` has grown."""
        self.best.load_state_dict(state_dict["best"])
        self.waited = state_dict["waited"]
        self._state.should_stop = self._state.should_stop or self.waited >= self.patience
