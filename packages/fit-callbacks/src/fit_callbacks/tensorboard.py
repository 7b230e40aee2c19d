"""A run's curves in TensorBoard."""

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
from .paths import local_folder
from .running import running_values

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes what a run gives into a folder for TensorBoard.

    * After each epoch everything in the logs: ``train/loss``, ``val/Acc@1``, ..., and ``lr`` (of several parameter
      groups ``lr/0``, ``lr/1``, ...).
    * Every ``every`` optimizer steps ``train_step/loss``, the mean loss since the last such point, and of each metric
      ``train_step/Acc@1`` the value of the epoch so far; of several processes, what rank 0 has seen.
    * Hyperparameters, for the HPARAMS page, in the same run.

    A resumed run goes on in the folder without a gap, and hides the points after the checkpoint that it repeats. A run
    that begins anew in the folder of another hides that one's points; the files stay. Writes on rank 0 only.

    Args:
        log_dir: the folder, one a run.
        every: optimizer steps between two running values; None for none.
        x: what the horizontal axis counts: optimizer ``steps``, training ``samples`` over all processes, or ``epochs``;
            with epochs there are no running values.
        hparams: more hyperparameters of yours: numbers, strings and booleans by name.
        graph: draw the model's graph, traced once on the first batch.
        histograms: histograms of all parameters after each epoch.
        images: how many inputs of the first validation batch to show after each epoch; they are ``(N, 1, H, W)`` or
            ``(N, 3, H, W)`` and shown from their least to their largest value.

    Attributes:
        writer: the SummaryWriter, to add what you like; None on other ranks and between runs.

    Raises:
        ValueError: ``every`` or ``x`` is not one of the above; ``images`` are wanted and inputs are none.

    Example:
        >>> Runner(model, optimizer, criterion, callbacks=[TensorBoard("runs/a", hparams={"width": 64})])
        $ tensorboard --logdir runs
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
            raise ValueError(f"x must be 'steps', 'samples' or 'epochs', got {x!r}")
        check_whole("images", images, 0)
        self.log_dir = str(local_folder("log_dir", log_dir))
        self.every = None if x == "epochs" else every
        self.x = x
        if not isinstance(hparams, (Mapping, type(None))):
            raise TypeError(f'hparams must be a dict such as {{"lr": 0.1}}, got {hparams!r}')
        self.hparams = dict(hparams or {})
        self.graph = graph
        self.histograms = histograms
        self.images = images
        self.writer: Any = None
        self._epochs: int | None = None  # rows of the history that are written
        self._since: dict[str, tuple[float, float]] = {}  # total and weight of each loss at the last running value
        self._last_x = -1
        self._last: dict[str, float] = {}  # what was written at that x

    def on_begin(self, state: RunnerState) -> None:
        """A new run; what a resumed one has written is restored after this."""
        self._epochs, self._since, self._last_x, self._last = None, {}, -1, {}
        if state.rank == 0:
            os.makedirs(self.log_dir, exist_ok=True)

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Write the epoch before, with all that callbacks have added to it."""
        if state.rank:
            return
        if self.writer is None:
            self._open(state)
        self._write_epochs(state)

    def on_loader_begin(self, state: RunnerState) -> None:
        """Begin the running loss anew, unless the run was interrupted in this epoch."""
        if state.is_train and not state.batch_idx:
            self._since = {}

    def on_batch_end(self, state: RunnerState) -> None:
        """Write running values, when it is time."""
        if self.writer is None:
            return
        if is_due(state, self.every):
            self._write(state, self._running(state))
        if self.graph and state.is_train:
            self.graph = False
            self._write_graph(state)
        if self.images and not state.is_train and state.batch_idx == 0:
            self._write_images(state)

    def on_epoch_end(self, state: RunnerState) -> None:
        """Write histograms."""
        if self.writer is not None and self.histograms:
            for name, parameter in unwrap(state.model).named_parameters():
                self.writer.add_histogram(name.replace(".", "/"), parameter.detach(), self._now(state))

    def on_end(self, state: RunnerState) -> None:
        """Write the last epoch, and close the file."""
        if self.writer is not None:
            self._write_epochs(state)
            self.writer.close()
            self.writer = None

    def add_figure(self, state: RunnerState, tag: str, figure: Any) -> None:
        """Show a matplotlib figure, at this point of the run; does nothing on other ranks."""
        if self.writer is not None:
            self.writer.add_figure(tag, figure, self._now(state))

    def state_dict(self) -> dict[str, Any]:
        """How far it has written; what is before a checkpoint is in the file by then."""
        if self.writer is not None:
            self.writer.flush()
        return {"epochs": self._epochs, "since": dict(self._since), "last_x": self._last_x, "last": dict(self._last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on writing there."""
        self._epochs, self._since = state_dict["epochs"], dict(state_dict["since"])
        self._last_x, self._last = state_dict["last_x"], dict(state_dict["last"])

    def _now(self, state: RunnerState) -> int:
        return {"steps": state.global_step, "samples": state.samples_seen, "epochs": state.epoch}[self.x]

    def _open(self, state: RunnerState) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops what older files have from this x on; what belongs to this very x is written again.
        now = self._now(state)
        self.writer = SummaryWriter(self.log_dir, purge_step=now, flush_secs=1)
        if self._last_x == now:
            self._last_x, last = -1, self._last
            self._write(state, last)
        if self._epochs is None:
            self._epochs = len(state.history)

    def _write(self, state: RunnerState, values: dict[str, float]) -> None:
        now = self._now(state)
        if now != self._last_x:
            self._last_x, self._last = now, {}
        for tag, value in values.items():
            if tag not in self._last:  # one point at each x
                self.writer.add_scalar(tag, value, now)
        self._last |= values

    def _write_epochs(self, state: RunnerState) -> None:
        for row in state.history[self._epochs :]:
            if row["epoch"] == 1:
                self._write_hparams(state, row)
            several = len(state.optimizer.param_groups) > 1
            values = {name: value for name, value in row.items() if name != "epoch" and not (name == "lr" and several)}
            self._write(state, {**values, **_learning_rates(state), **values})
        self._epochs = len(state.history)

    def _running(self, state: RunnerState) -> dict[str, float]:
        """Reading these waits for the device."""
        values = {f"train_step/{name}": value for name, value in running_values(state, self._since).items()}
        return {**values, **_learning_rates(state)}

    def _write_hparams(self, state: RunnerState, row: dict[str, float]) -> None:
        # SummaryWriter.add_hparams would open a second run for them (pytorch/pytorch#32651).
        from torch.utils.tensorboard.summary import hparams

        settings = {
            "model": type(unwrap(state.model)).__name__,
            "optimizer": type(state.optimizer).__name__,
            "lr": float(state.optimizer.param_groups[0].get("initial_lr", state.optimizer.param_groups[0]["lr"])),
            "batch_size": state.samples_seen // max(1, state.global_step),
            "epochs": state.num_epochs,
            **self.hparams,
        }
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in settings.items()
        }
        for summary in hparams(plain, {name: value for name, value in row.items() if "/" in name}):  # type: ignore[no-untyped-call]
            self.writer.file_writer.add_summary(summary)

    def _write_graph(self, state: RunnerState) -> None:
        # A copy, and its random numbers apart: to trace a model runs it.
        model = copy.deepcopy(unwrap(state.model))
        with torch.random.fork_rng(devices=[state.device] if state.device.type == "cuda" else []):
            self.writer.add_graph(model, state.input)

    def _write_images(self, state: RunnerState) -> None:
        images = state.input
        if not isinstance(images, Tensor) or images.dim() != 4 or images.size(1) not in (1, 3):
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"TensorBoard(images=...) shows inputs (N, 1, H, W) or (N, 3, H, W), got {got}")
        images = images[: self.images].detach().float()
        least, most = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        self.writer.add_images("val/input", (images - least) / (most - least).clamp_min(1e-12), self._now(state))


def _learning_rates(state: RunnerState) -> dict[str, float]:
    groups = state.optimizer.param_groups
    if len(groups) == 1:
        return {"lr": float(groups[0]["lr"])}
    return {f"lr/{number}": float(group["lr"]) for number, group in enumerate(groups)}
