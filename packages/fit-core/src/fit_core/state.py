"""Everything a run is, in one place: what callbacks read, what the loop writes, and what a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import checks, resume
from .batch import count_samples, pair, to_device
from .callback import LIFECYCLE, Callback, Hook, hooks_of
from .metric import Mean, Metric, metric_name, results
from .stream import Stream, length, process_group, why_empty
from .window import Window

__all__ = ["History", "RunnerState"]

History = list[dict[str, float]]
"""One dict an epoch: ``{"epoch": 1, "train/loss": 0.7, "lr": 0.1, "val/Acc@1": 0.9}``."""


@dataclass(slots=True, eq=False, repr=False)
class RunnerState:
    """The state of a run, handed to every hook. A misspelt field raises AttributeError.

    Attributes:
        model: what is called on each batch. A callback may put another in its place (as an EMA does).
        optimizer: the optimizer.
        criterion: ``criterion(output, target)`` gives the scalar loss.
        metrics: the metrics, plain functions wrapped.
        callbacks: the callbacks, in the order in which they are called.
        accumulate_steps: batches per optimizer step.
        device: where the model is and batches are moved to.
        grad_scaler: scales the loss in fp16; disabled, and then without any effect, otherwise.

        epoch: the epoch that runs, from 0; in ``on_checkpoint`` after an epoch, and after the run, the number of
            epochs that are complete.
        num_epochs: how many epochs the run has.
        step: the batch in this epoch, from 0.
        epoch_size: batches of the loader that runs; None while unknown.
        global_step: optimizer steps since the run began.
        samples: training samples since the run began, over all processes.
        batch_size: samples in this batch. A callback may correct it in ``on_batch_begin``.
        is_train: training, or else validation, evaluation, prediction.
        is_optimizer_step: this batch closes its accumulation window.
        loader: the loader that runs.
        val_loader: the loader that the run validates on; None where it does not validate.
        output: what the model returned.
        loss: the loss of this batch, on the device; None before the first and in ``predict``.
        loss_meter: the mean loss of the loader so far; ``float(state.loss_meter.compute())`` waits for the device.
        history: one dict for each epoch that is complete.
        rank: number of this process among all, from 0.
        world_size: number of processes.
        error: the exception that ended the run, for ``on_end``.

        input: the input of the batch, on the device; may be replaced in ``on_batch_begin``.
        target: its target, likewise.
        logs: the results of this epoch by name (``train/loss``, ``val/Acc@1``, ``lr`` of the first parameter group);
            a callback may add to it.
        should_stop: set it to end the run. It is looked at after each batch, which leaves the epoch incomplete (no
            ``on_loader_end``, no ``on_epoch_end``; a resumed run completes it), and after each epoch.
        skipping: wraps the batches that a resumed run fetches and drops to find its place, and is told their number;
            for a bar.
    """

    # The user's, through Runner.
    model: nn.Module
    optimizer: torch.optim.Optimizer
    criterion: Callable[[Any, Any], Tensor]
    metrics: list[Metric]
    callbacks: list[Callback]
    accumulate_steps: int
    device: torch.device
    grad_scaler: torch.amp.GradScaler

    # The loop's: for callbacks to read.
    epoch: int = 0
    num_epochs: int = 0
    step: int = 0
    epoch_size: int | None = None
    global_step: int = 0
    samples: int = 0
    batch_size: int = 0
    is_train: bool = False
    is_optimizer_step: bool = False
    loader: Iterable[Any] | None = None
    val_loader: Iterable[Any] | None = None
    output: Any = None
    loss: Tensor | None = None
    loss_meter: Mean = field(default_factory=Mean)
    history: History = field(default_factory=list)
    rank: int = 0
    world_size: int = 1
    error: BaseException | None = None

    # For callbacks to change.
    input: Any = None
    target: Any = None
    logs: dict[str, float] = field(default_factory=dict)
    should_stop: bool = False
    skipping: Callable[[Iterable[Any], int], Iterable[Any]] | None = None

    # The loop's own.
    _trained: nn.Module = field(init=False)
    _window: Window = field(init=False)
    _hooks: dict[str, list[Hook]] = field(default_factory=dict)
    _split: Callable[[Any], tuple[Any, Any]] = pair
    _stream: Stream | None = None
    _trained_to_end: dict[str, Any] | None = None
    _resume: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._trained = self.model
        self._window = Window(self.accumulate_steps)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, for schedules that need to know where they end.

        Raises:
            ValueError: the training loader has no len and ``steps_per_epoch`` was not given.
        """
        size = self._stream.size if self._stream else None
        if size is None:
            loader = type(self._stream.loader).__name__ if self._stream else "loader"
            raise ValueError(
                f"the number of steps is unknown, because the training {loader} has no len: "
                "pass steps_per_epoch=... to fit"
            )
        return self.num_epochs * -(-size // self.accumulate_steps)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on with the same bits; exact in ``on_checkpoint`` and between runs.

        Holds only what ``torch.load(..., weights_only=True)`` accepts. Tensors are the live ones, not copies: write
        or copy them before the next step. ``"model"`` loads into the bare model: prefixes of DDP and torch.compile
        are stripped. ``"ranks"`` is a list with what differs between processes (random state, place in the data,
        meters), here of this process alone; whoever saves for several processes puts the entries of all into it, by
        rank.

        Raises:
            RuntimeError: no run has begun.
        """
        return resume.save(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a run where :meth:`state_dict` described it; the next ``fit`` goes on from there.

        Call it before ``fit``, or in ``on_begin``. Model, optimizer, scaler and counters are restored at once. Meters,
        metrics, callbacks, the place in the data and the random state follow after the ``on_begin`` of all callbacks.

        Raises:
            ValueError: the state is of a newer format, or of another model or optimizer. Nothing is changed then.
        """
        resume.load(self, state_dict)
        self._resume = state_dict

    def __str__(self) -> str:
        """What is trained, and which callbacks take part at which hook, in the order in which they are called."""
        parts = ", ".join(type(part).__name__ for part in (self.model, self.optimizer, self.criterion))
        metrics = ", ".join(map(metric_name, self.metrics)) or "none"
        hooks = {
            hook: [type(method.__self__).__name__ for method in methods]  # type: ignore[attr-defined]
            for hook, methods in hooks_of(self.callbacks).items()
        }
        lines = [f"{line:<28}{', '.join(hooks[line.strip()])}".rstrip() for line in LIFECYCLE.splitlines()]
        return "\n".join([f"Runner({parts}) on {self.device}, metrics: {metrics}", *lines])

    def _begin(self, split: Callable[[Any], tuple[Any, Any]]) -> None:
        """Look at what can have changed since the last run: devices, processes, callbacks and metrics."""
        self._split = split
        self._hooks = hooks_of(self.callbacks)
        self.device = checks.model_device(self.model)
        self.rank, self.world_size = process_group()
        checks.metrics_reduce(self.metrics, self.world_size)
        for meter in (self.loss_meter, *self.metrics):
            if hasattr(meter, "to"):
                meter.to(self.device)
            if hasattr(meter, "persistent"):  # torchmetrics: let state_dict hold what exact resume needs.
                meter.persistent(True)

    def _aside(self) -> RunnerState:
        """A copy to evaluate with; what the run has counted and logged stays with the run."""
        state = copy.copy(self)
        state.loss_meter, state.logs, state.should_stop = Mean(), {}, False
        inside_epoch = self._stream is not None and self._stream.step > 0 and self._trained_to_end is None
        if inside_epoch and self.error is None:  # The metrics hold a part of the epoch, which the run still needs.
            state.metrics = copy.deepcopy(self.metrics)
        return state

    def _call(self, hook: str) -> None:
        for method in self._hooks[hook]:
            method(self)

    def _call_each(self, hook: str) -> None:
        """Call every method of a hook, whatever another raises; the first error is raised in the end."""
        with ExitStack() as stack:
            for method in reversed(self._hooks[hook]):
                stack.callback(method, self)

    def _start_loader(self, loader: Iterable[Any], stream: Stream | None, steps: int | None) -> int:
        """A loader begins; returns the number of its first batch, above 0 in a run interrupted in this epoch."""
        self.loader, self.is_train, self.batch_size = loader, stream is not None, 0
        self.epoch_size = stream.size if stream else length(loader, at_most=steps)
        first = stream.step if stream else 0
        if not first:
            for meter in (self.loss_meter, *self.metrics):
                meter.reset()
        return first

    def _take(self, batch: Any) -> None:
        """A batch begins: its input and target are moved to the device, its samples counted."""
        input, target = self._split(batch)
        self.input, self.target = to_device(input, self.device), to_device(target, self.device)
        self.batch_size = count_samples(self.input)
        self.output = self.loss = None

    def _measure(self) -> None:
        """A batch has been stepped: count it, and add it to the loss and the metrics, without a wait for the device."""
        if self.is_train:
            self.global_step += self.is_optimizer_step
            self.samples += self.batch_size * self.world_size
        if self.loss is not None:
            self.loss_meter.update(self.loss, self.batch_size)
        if self.metrics:
            with torch.no_grad():
                for metric in self.metrics:
                    metric.update(self.output, self.target)

    def _end_loader(self) -> None:
        """A loader is done: its results, over all processes, go into the logs."""
        if self.is_train:  # A run that is stopped between here and the next epoch goes on from here.
            self._trained_to_end = copy.deepcopy(resume.of_this_rank(self))
        values = results(self.loss_meter, self.metrics)
        interrupted = self.is_train and self._stream is not None and self._stream.step
        if not self.batch_size and not values and not interrupted:
            raise ValueError(why_empty(self.loader, "the loader"))
        prefix = "train" if self.is_train else "val"
        self.logs.update({f"{prefix}/{name}": value for name, value in values.items()})
        if self.is_train:
            self.logs["lr"] = float(self.optimizer.param_groups[0]["lr"])

    def _start(self, stream: Stream, epochs: int, val_loader: Iterable[Any] | None) -> None:
        """A run of ``fit`` begins: anew, unless a state was loaded for it."""
        self._stream, self.num_epochs, self.val_loader = stream, epochs, val_loader
        self.should_stop, self.error, self._trained_to_end = False, None, None
        self._window = Window(self.accumulate_steps)
        if self._resume is None:
            self.epoch = self.global_step = self.samples = 0
            self.logs, self.history = {}, []

    def _go_on(self) -> None:
        """Restore the rest of a loaded state, now that every callback has begun."""
        saved, self._resume = self._resume, None
        if saved is not None:
            resume.go_on(self, saved)

    def _end_epoch(self) -> None:
        """The epoch is complete; the next one begins at its first batch."""
        self.history.append({"epoch": self.epoch + 1, **self.logs})
        self.epoch += 1
        self._trained_to_end = None
        if self._stream:
            self._stream.end_epoch()

    def _parameters(self) -> Iterator[Tensor]:
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])
