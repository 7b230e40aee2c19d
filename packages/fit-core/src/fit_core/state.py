"""Define the state of a run, which callbacks read and change, and checkpoints contain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .callback import Callback
from .history import History
from .metric import Mean, Metric

__all__ = ["RunnerState"]


class Checkpoint(Protocol):
    """Save a run as a dict and restore it."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything about the run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it. The run keeps tensors of it, so it cannot be loaded again."""


class Loop(Protocol):
    """Let a callback make the step of a batch in place of `state.make_step`, from a graph, say.

    The callback runs `make_step`, `finish_step` and `measure` in `rehearse()` while it records them. For each
    batch that it replays, it calls `weigh` if windows have several batches, sets `state.output`, `state.loss` and
    `state.losses`, and calls `note_step`.
    """

    @property
    def has_gradients(self) -> bool:
        """Whether this batch adds to gradients that earlier batches of its accumulation window have left."""

    def rehearse(self) -> AbstractContextManager[None]:
        """Return a context in which a step may run that does not count. The loop forgets it at the end."""

    def weigh(self) -> tuple[float | Tensor, float | Tensor | None]:
        """Return the divisor of the losses of this batch, and the factor of the gradients so far, None for 1.

        Both make the gradients of an accumulation window add up, and are numbers unless a weight is a tensor or several
        processes train.
        """

    def finish_step(self) -> None:
        """Let the scaler know that all optimizers of this batch have been stepped. Call it if one was."""

    def measure(self, metrics: Iterable[Metric]) -> None:
        """Update metrics with the batch."""

    def note_step(self, measured: Collection[Metric] = ()) -> None:
        """Take note that the step of this batch was made, and which metrics have seen the batch in it."""


@dataclass(slots=True, eq=False, repr=False)
class RunnerState:
    """The state of a run, passed to every hook. A misspelt field raises AttributeError.

    Attributes:
        model: the model. A callback may replace it with another one, as an EMA does.
        optimizer: the optimizer.
        criterion: `criterion(output, target)` returns the loss. In `predict` it returns None.
        metrics: the metrics, plain functions wrapped.
        callbacks: the callbacks, in the order in which they are called.
        accumulate_steps: batches per optimizer step.
        device: the device of the model, to which batches are moved.
        grad_scaler: scales the loss in fp16. It is disabled, and has no effect, otherwise.
        checkpoint: the object behind `state_dict` and `load_state_dict`.

        epoch: the current epoch, from 0. In `on_checkpoint` after an epoch, and after the run, the number of
            epochs that are complete.
        num_epochs: epochs of the run.
        batch_idx: the batch of this loader, from 0.
        num_batches: batches of this loader, None while unknown.
        batches_per_epoch: training batches per epoch, None while unknown.
        global_step: optimizer steps since the run started.
        samples_seen: training samples since the run started, over all processes. Inside an epoch it assumes that the
            other processes have as many as this one.
        is_train: True in training, False in validation, evaluation and prediction.
        is_optimizer_step: whether this batch is the last of its accumulation window.
        needs_loss: False in `predict`, where `Runner.forward` does not need the loss.
        loader: the current loader.
        loader_name: `train`, `val`, the name passed to `evaluate`, or `predict`. Results are logged under it.
        train_loader: the loader the run trains on.
        val_loader: the loader the run validates on, None if it does not validate.
        loss_meters: the mean of each loss of this loader so far, by name. `float(meter.compute())` waits for the
            device.
        history: one dict per complete epoch.
        rank: number of this process among all, from 0.
        world_size: number of processes.
        error: in `on_end`, the exception that ended the run.
        status: `running` inside `fit`. From `on_end` on `finished`, `interrupted` (stopped inside an epoch,
            or by a signal or Ctrl-C) or `failed`.

        input: the input of the batch, on the device. May be replaced in `on_batch_begin`.
        target: its target, likewise.
        batch_size: samples in this batch: the length that input and target agree on. If they do not agree it is None,
            and you set it in `on_batch_begin` or `forward`.
        weight: the number that the mean loss of this batch is a mean over, such as the number of target tokens: a
            number or a 0-dim tensor. None means `batch_size`. May be set in `on_batch_begin` or `forward`.
        output: the output of the model. Metrics skip a batch without one.
        loss: the loss of this batch, on the device. `forward` may set a dict of losses: `"loss"` is trained on
            and becomes `state.loss`, the others are moved to `state.losses` and logged.
        losses: the other losses of this batch, by name.
        logs: the results of this epoch by name (`train/loss`, `val/Acc@1`, `lr` of the first parameter group).
            A callback may add to it.
        make_step: the function the loop calls for each batch. A callback may wrap it in `on_begin`. Set to
            `Runner._make_step` at the start of each run.
        loop: for a callback that makes the step itself, from a graph, say: a `fit_core.state.Loop`.
        should_stop: set it to stop the run, with `status = "interrupted"` if the run is meant to be resumed. It is
            read after each batch, which leaves the epoch incomplete (no `on_loader_end`, no `on_epoch_end`, and
            a resumed run completes it), and after each epoch. On several processes one may set it, before
            `on_checkpoint`, and all stop after the same training batch. In validation they stop after the epoch.
            `evaluate` and `predict` ignore it.
    """

    # The user's, through Runner.
    model: nn.Module
    optimizer: torch.optim.Optimizer
    criterion: Callable[[Any, Any], Any]
    metrics: list[Metric]
    callbacks: list[Callback]
    accumulate_steps: int
    device: torch.device
    grad_scaler: torch.amp.GradScaler
    checkpoint: Checkpoint = field(init=False)

    # The loop's: for callbacks to read.
    epoch: int = 0
    num_epochs: int = 0
    batch_idx: int = 0
    num_batches: int | None = None
    batches_per_epoch: int | None = None
    global_step: int = 0
    samples_seen: int = 0
    is_train: bool = False
    is_optimizer_step: bool = False
    needs_loss: bool = True
    loader: Iterable[Any] | None = None
    loader_name: str = ""
    train_loader: Iterable[Any] | None = None
    val_loader: Iterable[Any] | None = None
    loss_meters: dict[str, Mean] = field(default_factory=dict)
    history: History = field(default_factory=History)
    rank: int = 0
    world_size: int = 1
    error: BaseException | None = None
    status: str = "not started"

    # For callbacks and forward to change.
    input: Any = None
    target: Any = None
    batch_size: int | None = None
    weight: float | Tensor | None = None
    output: Any = None
    loss: Any = None
    losses: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, float] = field(default_factory=dict)
    make_step: Callable[[], None] = field(init=False)
    loop: Loop = field(init=False)
    should_stop: bool = False

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of the whole run, for schedules that need to know where they end.

        Raises:
            ValueError: the training loader does not have a len, and `steps_per_epoch` was not passed.
        """
        if self.batches_per_epoch is None:
            raise ValueError(
                f"expected a training loader with a len, got a {type(self.train_loader).__name__} without. "
                "Pass steps_per_epoch=... to fit"
            )
        return self.num_epochs * -(-self.batches_per_epoch // self.accumulate_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return everything about the run. It is exact in `on_checkpoint` and between runs.

        Contains only what `torch.load(..., weights_only=True)` accepts. Tensors are the live ones, not copies:
        write or copy them before the next step. `"model"` loads into the bare model, since prefixes of DDP and
        torch.compile are stripped. `"ranks"` is a list of the parts that differ between processes (random state,
        place in the data, meters), here of this process alone. To save several processes, put the entries of all into
        it, by rank.

        Raises:
            RuntimeError: `fit` has not been called yet.
        """
        return self.checkpoint.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a run that `state_dict` returned. The next `fit` resumes it.

        Call it before `fit`, or in `on_begin`. Model, criterion, optimizer, scaler and counters are restored at
        once. Meters, metrics, callbacks, the place in the data and the random state follow after the `on_begin` of
        all callbacks.

        Raises:
            ValueError: the state has a newer format, or belongs to another model, criterion or optimizer. Nothing is
                changed then.
        """
        # The run keeps tensors of these parts, and changes them. The state may be loaded again.
        kept = ("optimizer", "ranks")
        copied = {name: copy.deepcopy(part) if name in kept else part for name, part in state_dict.items()}
        self.checkpoint.load_state_dict(copied)

    def __repr__(self) -> str:
        """Show where the run is, and its last results."""
        batches = "?" if self.num_batches is None else self.num_batches
        values: dict[str, object] = {**self.logs}  # A callback may log text.
        logs = ", ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in values.items())
        return (
            f"RunnerState(epoch {self.epoch} of {self.num_epochs}, batch {self.batch_idx} of {batches} in "
            f"{self.loader_name or 'no loader'}, {self.global_step} steps, {self.samples_seen} samples, "
            f"on {self.device}, logs: {logs or 'none'})"
        )
