"""Log a run to TensorBoard."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from fit_core import Callback, RunnerState, unwrap
from torch import Tensor

from .arguments import check_whole
from .every import check_every, is_due
from .harmless import Harmless
from .hyperparameters import hyperparameters
from .paths import local_folder
from .points import Points
from .running import running_values
from .shards import whole

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Log results, running values and hyperparameters to a folder for TensorBoard.

    * After each epoch everything in the logs: `train/loss`, `val/Acc@1`, ..., and `lr` (with several parameter
      groups `lr/0`, `lr/1`, ...).
    * Every `every` optimizer steps `train_step/loss`, the mean loss since the last such point, and for each metric
      `train_step/Acc@1`, the value of the epoch so far (with several processes, that of rank 0).
    * Hyperparameters, for the HPARAMS page, in the same run.

    A resumed run continues in the folder without a gap, and hides the points after the checkpoint that it repeats. A
    run that starts from scratch in the folder of another hides that one's points. The files stay. If the folder cannot
    be written to, a warning says so, training continues, and a later epoch writes the missing points. Errors in drawing
    are warnings too. Writes on rank 0 only.

    Args:
        log_dir: the folder, one per run.
        every: optimizer steps between two running values. None turns them off.
        x: the unit of the horizontal axis: optimizer `steps`, training `samples` over all processes, or `epochs`,
            without running values.
        hparams: your own hyperparameters: numbers, strings and booleans by name.
        graph: draw the model's graph, traced once on the first batch.
        histograms: add histograms of all parameters after each epoch.
        images: the number of inputs of the first validation batch to show after each epoch. They are `(N, 1, H, W)`
            or `(N, 3, H, W)`, and scaled to the range of their values.

    Attributes:
        writer: the SummaryWriter, for your own data. None on other ranks, between runs, and while the folder cannot be
            written to.

    Raises:
        ValueError: `every` or `x` is invalid.

    Examples:
        >>> Runner(model, optimizer, criterion, callbacks=[TensorBoard("runs/a", hparams={"width": 64})])

        In a shell, `tensorboard --logdir runs` shows it.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        every: int | None = 50,
        *,
        x: str = "steps",
        hparams: Mapping[str, Any] | None = None,
        graph: bool = False,
        histograms: bool = False,
        images: int = 0,
    ) -> None:
        check_every("every", every)
        if x not in ("steps", "samples", "epochs"):
            raise ValueError(f"expected x to be 'steps', 'samples' or 'epochs', got {x!r}")
        check_whole("images", images, 0)
        self.log_dir = str(local_folder("log_dir", log_dir))
        self.every = None if x == "epochs" else every
        self.x = x
        if not isinstance(hparams, (Mapping, type(None))):
            raise TypeError(f'expected hparams to be a dict such as {{"lr": 0.1}}, got {hparams!r}')
        self.hparams = dict(hparams or {})
        self.graph = graph
        self.histograms = histograms
        self.images = images
        self._harmless = Harmless("TensorBoard")
        self._forget()

    def _forget(self) -> None:
        self._is_open = False
        self._epochs: int | None = None  # rows of the history that are among the points
        self._since: dict[str, tuple[float, float]] = {}  # total and weight of each loss at the last running value
        self._points = Points(self.log_dir, self._harmless)
        self._has_hparams = False
        self._rates: dict[str, float] = {}  # the learning rates at the end of the last training loader

    @property
    def writer(self) -> Any:
        """The SummaryWriter, or None."""
        return self._points.writer

    def on_begin(self, state: RunnerState) -> None:
        """Forget the last run. The state of a resumed run is restored after this."""
        self._forget()
        self._harmless.begin()
        if state.rank == 0:
            os.makedirs(self.log_dir, exist_ok=True)

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Write the last epoch with everything that callbacks have added to it."""
        if state.rank:
            return
        self._is_open = True
        if self._epochs is None:
            self._epochs = len(state.history)
        self._write_epochs(state)

    def on_loader_begin(self, state: RunnerState) -> None:
        """Restart the running loss with the meters, unless the run was interrupted in this epoch."""
        if state.is_train and not state.loss_meters:
            self._since = {}

    def on_batch_end(self, state: RunnerState) -> None:
        """Write running values every `every` steps."""
        if not self._is_open:
            return
        if is_due(state, self.every):
            self._points.add(self._now(state), self._running(state))
        if self.graph and state.is_train and self.writer is not None:
            self.graph = False
            with self._harmless("could not draw the graph"):
                self._write_graph(state)
        if self.images and state.loader_name == "val" and state.batch_idx == 0 and self.writer is not None:
            with self._harmless("could not show the inputs"):
                self._write_images(state)

    def on_loader_end(self, state: RunnerState) -> None:
        """Keep the learning rates of the epoch, since a schedule may set the next ones before the epoch is written."""
        if state.is_train:
            self._rates = _learning_rates(state)

    def on_epoch_end(self, state: RunnerState) -> None:
        """Write histograms."""
        for name, parameter in unwrap(state.model).named_parameters() if self.histograms else ():
            values = whole(parameter.detach())  # on every process, which has a part of it
            if self.writer is not None:
                with self._harmless("could not draw a histogram"):
                    self.writer.add_histogram(name.replace(".", "/"), values, self._now(state))

    def on_end(self, state: RunnerState) -> None:
        """Write the last epoch, and close the file."""
        if self._is_open or self._misses_end(state):
            self._write_epochs(state, is_end=True)
            self._points.close()
            self._is_open = False

    def add_figure(self, state: RunnerState, tag: str, figure: Any) -> None:
        """Add a matplotlib figure at this point of the run. Does nothing on other ranks."""
        if self.writer is not None:
            with self._harmless("could not show a figure"):
                self.writer.add_figure(tag, figure, self._now(state))

    def state_dict(self) -> dict[str, Any]:
        """Return the points that may not be in the file yet, and the state for a resumed run."""
        self._points.flush()
        return {
            "epochs": self._epochs,
            "since": dict(self._since),
            "points": self._points.state_dict(),
            "has_hparams": self._has_hparams,
            "rates": dict(self._rates),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self._epochs, self._since = state_dict["epochs"], dict(state_dict["since"])
        self._points.load_state_dict(state_dict["points"])
        self._has_hparams, self._rates = state_dict["has_hparams"], dict(state_dict["rates"])

    def _misses_end(self, state: RunnerState) -> bool:
        """Return whether the run was killed after its last checkpoint, and is resumed only to end."""
        is_resumed = self._epochs is not None and state.rank == 0 and state.error is None
        return is_resumed and self._epochs != len(state.history)

    def _now(self, state: RunnerState) -> int:
        return {"steps": state.global_step, "samples": state.samples_seen, "epochs": state.epoch}[self.x]

    def _write_epochs(self, state: RunnerState, *, is_end: bool = False) -> None:
        """Write the rows of the history that are new, and all points that are not in the file."""
        rows = state.history[self._epochs :]
        for row in rows:
            results = {name: value for name, value in row.items() if name not in ("epoch", "lr")}
            self._points.add(self._now(state), {**self._rates, **results})
        self._epochs = len(state.history)
        if self.writer is None:
            self._points.open(self._now(state))
        has_written = self.writer is not None and not self._has_hparams and self._write_hparams(state, rows, is_end)
        self._points.flush()
        self._has_hparams |= has_written and self.writer is not None

    def _running(self, state: RunnerState) -> dict[str, float]:
        """Return the running values. Reading them waits for the device."""
        values = {f"train_step/{name}": value for name, value in running_values(state, self._since).items()}
        return {**values, **_learning_rates(state)}

    def _write_hparams(self, state: RunnerState, rows: list[dict[str, float]], is_end: bool) -> bool:
        """Write the hyperparameters, with a column for each result. Return False if there is no result to show yet."""
        if state.val_loader is not None and not is_end:
            rows = [row for row in rows if any(name.startswith("val/") for name in row)]
        row = next(iter(rows or state.history[-1:] * is_end), None)
        if row is None:
            return False
        with self._harmless("could not write the hyperparameters"):
            self._add_hparams(state, row)
            return True
        return False

    def _add_hparams(self, state: RunnerState, row: dict[str, float]) -> None:
        # SummaryWriter.add_hparams would open a second run for them (pytorch/pytorch#32651).
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in {**hyperparameters(state), **self.hparams}.items()
        }
        results = {name: value for name, value in row.items() if "/" in name}
        for summary in hparams(plain, results):  # type: ignore[no-untyped-call]  # torch does not annotate it
            self.writer.file_writer.add_summary(summary)

    def _write_graph(self, state: RunnerState) -> None:
        # On a copy and without changing the random state, because tracing runs the model.
        model = copy.deepcopy(unwrap(state.model))
        with torch.random.fork_rng(devices=[state.device] if state.device.type == "cuda" else []):
            self.writer.add_graph(model, state.input)

    def _write_images(self, state: RunnerState) -> None:
        images = state.input
        if not isinstance(images, Tensor) or images.dim() != 4 or images.size(1) not in (1, 3):
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"expected inputs (N, 1, H, W) or (N, 3, H, W) for TensorBoard(images=...), got {got}")
        images = images[: self.images].detach().float()
        least, most = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        self.writer.add_images("val/input", (images - least) / (most - least).clamp_min(1e-12), self._now(state))


def _learning_rates(state: RunnerState) -> dict[str, float]:
    groups = state.optimizer.param_groups
    if len(groups) == 1:
        return {"lr": float(groups[0]["lr"])}
    return {f"lr/{number}": float(group["lr"]) for number, group in enumerate(groups)}
