"""Report a run to an experiment tracker."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fit_core import Callback, RunnerState

from .arguments import check_callable
from .every import check_every, is_due
from .hyperparameters import hyperparameters
from .running import running_values

__all__ = ["Report"]


class Report(Callback):
    """Report a run to any experiment tracker through the tracker's own functions.

    `log` is called as `log(values, step=state.global_step)`: after each epoch with its row of the history, and
    every `every` optimizer steps with `train_step/loss`, the mean since the last such point, `train_step/lr`, and
    for each metric `train_step/Acc@1`, the value of the epoch so far (with several processes, that of rank 0).

    If the loader has a len, each step is logged once. A resumed run repeats only steps between the checkpoint and
    a kill. If the tracker raises, Report warns once per run, and training continues. Reports on rank 0 only.

    Args:
        log: a function of a dict of floats and `step=`.
        params: called once per remote run with a dict of the hyperparameters that the Runner knows.
        start: opens the remote run and returns its id. Called with None, or in a resumed run with the id to continue.
        finish: closes the remote run. Called with `finished`, `interrupted` or `failed`.
        every: optimizer steps between two running values. None turns them off.

    Raises:
        ValueError: `every` is not a positive number.

    Examples:
        >>> run = wandb.init(project="digits")
        >>> Runner(model, optimizer, criterion, callbacks=[Report(run.log, params=run.config.update)])
    """

    def __init__(
        self,
        log: Callable[..., Any],
        *,
        params: Callable[[dict[str, Any]], Any] | None = None,
        start: Callable[[str | None], Any] | None = None,
        finish: Callable[[str], Any] | None = None,
        every: int | None = 50,
    ) -> None:
        check_every("every", every)
        check_callable("log", log, "wandb.log")
        for name, function in (("params", params), ("start", start), ("finish", finish)):
            if function is not None:
                check_callable(name, function, "mlflow.log_params")
        self.log, self.params, self.start, self.finish, self.every = log, params, start, finish, every
        self._forget(None)

    def _forget(self, state: RunnerState | None) -> None:
        self._state = state
        self._id: str | None = None
        self._epochs: int | None = None  # rows of the history that are logged
        self._since: dict[str, tuple[float, float]] = {}  # total and weight of each loss at the last running value
        self._held: dict[str, float] = {}  # running values at the end of the epoch, which are logged with its row
        self._is_open = self._has_warned = False

    def on_begin(self, state: RunnerState) -> None:
        """Forget the last run. A resumed one is restored after this."""
        self._forget(state)

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Start the remote run, and log the last epoch with everything that callbacks have added to it."""
        if state.rank == 0 and not self._is_open:
            self._open(state)
        self._log_epochs()

    def on_batch_end(self, state: RunnerState) -> None:
        """Log running values every `every` steps."""
        if self._is_open and is_due(state, self.every):
            values = {f"train_step/{name}": value for name, value in running_values(state, self._since).items()}
            values["train_step/lr"] = float(state.optimizer.param_groups[0]["lr"])
            if state.batch_idx + 1 == state.num_batches:
                self._held = values
                return
            with self._warn_once("log"):
                self.log(values, step=state.global_step)

    def on_loader_begin(self, state: RunnerState) -> None:
        """Restart the running loss with the meters, unless the run was interrupted in this epoch."""
        if state.is_train and not state.loss_meters:
            self._since = {}

    def on_end(self, state: RunnerState) -> None:
        """Log the last epoch, and finish the remote run."""
        self._log_epochs()
        if self._is_open and self.finish is not None:
            with self._warn_once("finish"):
                self.finish(state.status)
        self._is_open = False

    def state_dict(self) -> dict[str, Any]:
        """Log all complete epochs, and return the remote run's id and the number of logged epochs."""
        self._log_epochs()
        return {"id": self._id, "epochs": self._epochs, "since": dict(self._since), "held": dict(self._held)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the remote run."""
        self._id, self._epochs = state_dict["id"], state_dict["epochs"]
        self._since, self._held = dict(state_dict["since"]), dict(state_dict["held"])

    def _open(self, state: RunnerState) -> None:
        is_new = self._id is None
        with self._warn_once("start"):
            if self.start is not None and (id := self.start(self._id)) is not None:
                self._id = str(id)  # a checkpoint contains plain values only
            self._is_open = True
        if self._epochs is None or not self._is_open:  # the steps of earlier epochs are unknown
            self._epochs = len(state.history)
        if self._is_open and is_new and self.params is not None:
            with self._warn_once("params"):
                self.params(hyperparameters(state))

    def _log_epochs(self) -> None:
        if self._state is not None and self._is_open:
            for row in self._state.history[self._epochs :]:
                held, self._held = self._held, {}
                with self._warn_once("log"):
                    self.log({**held, **row}, step=self._state.global_step)
            self._epochs = len(self._state.history)

    @contextmanager
    def _warn_once(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                text = f"Report: {name} raised {error!r}. Training continues, but the tracker misses values"
                warnings.warn(text, stacklevel=2)
