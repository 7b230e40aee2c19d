"""Stop a run that no longer improves."""

from __future__ import annotations

from typing import Any

from fit_core import Callback, RunnerState

from .arguments import check_whole
from .hints import hints
from .monitor import Monitor
from .ranks import from_rank_zero, print_line

__all__ = ["EarlyStopping"]


@hints(
    restore_best_weights="CheckpointSaver keeps the best model: "
    'model.load_state_dict(torch.load("runs/a/best.pt", weights_only=True)["model"])',
    baseline="Stop in a callback of your own: set state.should_stop in on_epoch_end",
    start_from_epoch="Add the epochs to patience",
    verbose="It prints one line when it stops",
)
class EarlyStopping(Callback):
    """Stop the run when the monitored value has not improved for `patience` epochs, and print a line.

    Every process takes the decision of rank 0. Epochs without validation (`validate_every`) do not count. Nan and
    infinity are never an improvement.

    Args:
        monitor: a key of the logs, such as `val/Acc@1`. `loss` is `val/loss`, or `train/loss` without
            validation.
        mode: `min` if lower is better, `max` if higher is. `auto` takes `min` for a loss, and asks a metric's
            `higher_is_better`.
        patience: epochs without an improvement after which to stop, 1 or more.
        min_delta: by how much a value must be better to count, 0 or more.

    Raises:
        TypeError: `monitor` is not a string, or `patience` is not a whole number.
        ValueError: an argument is out of range. Before the first step: the run does not have this value, or it is
            unknown which way is better.

    Examples:
        >>> EarlyStopping("val/Acc@1", patience=5)
    """

    stops_together = True  # by what rank 0 has measured

    def __init__(
        self, monitor: str = "loss", mode: str = "auto", *, patience: int = 10, min_delta: float = 0.0
    ) -> None:
        if isinstance(monitor, int):
            raise TypeError(
                f"expected monitor to be a name in the logs, got {monitor}. Write EarlyStopping(patience={monitor})"
            )
        check_whole("patience", patience, 1)
        self.patience = patience
        self.monitor = Monitor(monitor, mode, min_delta)
        self.waited = 0

    def on_begin(self, state: RunnerState) -> None:
        """Find the monitored value. The count of a resumed run is restored after this."""
        self.monitor.begin(state)
        self.waited = 0
        self._state = state

    def on_epoch_end(self, state: RunnerState) -> None:
        """Compare with the best value."""
        value = from_rank_zero(self.monitor.value(state))
        if value is None:
            return
        self.waited = 0 if self.monitor.best.update(value) else self.waited + 1
        if self.waited >= self.patience:
            state.should_stop = True
            best = self.monitor.best.value
            print_line(
                state,
                f"EarlyStopping: stopped after epoch {state.epoch + 1}. {self.monitor.key} "
                f"{'never was a finite number' if best is None else f'was best at {best:.6g}'} and has not improved "
                f"for {self.patience} epoch{'s' if self.patience > 1 else ''}",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and the epochs since."""
        return {"monitor": self.monitor.state_dict(), "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count. A run that was stopped stays stopped, unless `patience` has grown."""
        if self.monitor.load_state_dict(state_dict["monitor"]):
            self.waited = state_dict["waited"]
            if self.waited >= self.patience and self._state.epoch < self._state.num_epochs:
                self._state.should_stop = True
                print_line(
                    self._state,
                    f"EarlyStopping: the run was stopped after epoch {self._state.epoch} and stays stopped. To train "
                    "on, pass a larger patience",
                )
