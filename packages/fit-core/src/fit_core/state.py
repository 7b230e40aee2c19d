"""Everything a run is, in one place: what callbacks read, what the loop writes, and what a checkpoint holds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .batch import pair
from .callback import LIFECYCLE, Callback, Hook, hooks_of
from .metric import Mean, Metric, metric_name
from .stream import Stream, get_rng, process_group, set_rng
from .window import Window

__all__ = ["FORMAT", "History", "RunnerState"]

History = list[dict[str, float]]
"""One dict an epoch: ``{"epoch": 1, "train/loss": 0.7, "val/Acc@1": 0.9}``."""

FORMAT = 1
"""The number of the layout of :meth:`RunnerState.state_dict`."""


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
        output: what the model returned.
        loss: the loss of this batch, on the device; None before the first and in ``predict``.
        loss_meter: the mean loss of the loader so far; ``float(state.loss_meter.compute())`` waits for the device.
        history: one dict for each epoch that is complete.
        rank: number of this process among all, from 0.
        world_size: number of processes.
        error: the exception that ended the run, for ``on_end``.

        input: the input of the batch, on the device; may be replaced in ``on_batch_begin``.
        target: its target, likewise.
        logs: the results of this epoch by name (``train/loss``, ``val/Acc@1``); a callback may add to it.
        should_stop: set it to end the run. It is looked at after each batch, which leaves the epoch incomplete (no
            ``on_loader_end``, no ``on_epoch_end``; a resumed run completes it), and after each epoch.
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
        """
        return {
            "format": FORMAT,
            "model": dict(_bare(self._trained)),
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "epoch": self.epoch,
            "global_step": self.global_step,
            "samples": self.samples,
            "logs": dict(self.logs),
            "history": [dict(row) for row in self.history],
            "settings": self._settings(),
            "callbacks": {name: callback.state_dict() for name, callback in self._with_memory()},
            "ranks": [self._trained_to_end or self._of_this_rank()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a run where :meth:`state_dict` described it; the next ``fit`` goes on from there.

        Call it before ``fit``, or in ``on_begin``. Model, optimizer, scaler and counters are restored at once. Meters,
        metrics, callbacks, the place in the data and the random state follow after the ``on_begin`` of all callbacks.

        Raises:
            ValueError: the state is of a newer format, or of another model or optimizer. Nothing is changed then.
        """
        if state_dict["format"] > FORMAT:
            raise ValueError(
                f"the state was written by format {state_dict['format']}, this fit-core reads up to {FORMAT}: "
                "upgrade fit-core"
            )
        own = dict(_bare(self._trained))
        _check_same_model(state_dict["model"], own)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        with torch.no_grad():
            for name, value in state_dict["model"].items():
                own[name].copy_(value)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.epoch, self.global_step = state_dict["epoch"], state_dict["global_step"]
        self.samples = state_dict["samples"]
        self.logs = dict(state_dict["logs"])
        self.history = [dict(row) for row in state_dict["history"]]
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
        return state

    def _call(self, hook: str) -> None:
        for method in self._hooks[hook]:
            method(self)

    def _call_each(self, hook: str) -> None:
        """Call every method of a hook, whatever another raises; the first error is raised in the end."""
        with ExitStack() as stack:
            for method in reversed(self._hooks[hook]):
                stack.callback(method, self)

    def _reset_meters(self) -> None:
        for meter in (self.loss_meter, *self.metrics):
            meter.reset()

    def _start(self, stream: Stream, epochs: int) -> None:
        """A run of ``fit`` begins: anew, unless a state was loaded for it."""
        self._stream, self.num_epochs = stream, epochs
        self.should_stop, self.error, self._trained_to_end = False, None, None
        self._window = Window(self.accumulate_steps)
        if self._resume is None:
            self.epoch = self.global_step = self.samples = 0
            self.logs, self.history = {}, []

    def _go_on(self) -> None:
        """Restore what a loaded state holds for this run, now that every callback has begun."""
        saved, self._resume = self._resume, None
        if saved is None:
            return
        for name, callback in self._with_memory():
            if name in saved["callbacks"]:
                callback.load_state_dict(saved["callbacks"][name])
        then, now = saved["settings"], self._settings()
        changed = [f"{name} {then[name]} -> {now[name]}" for name in then if then[name] != now[name]]
        if changed:
            warnings.warn(f"the run is resumed with other settings: {', '.join(changed)}", stacklevel=3)
        if len(saved["ranks"]) != self.world_size:
            warnings.warn(
                f"the state was saved by {len(saved['ranks'])} processes and is resumed by {self.world_size}: "
                "random states cannot be restored, and the interrupted epoch starts over",
                stacklevel=3,
            )
            return
        rank = saved["ranks"][self.rank]
        assert self._stream is not None
        self._stream.load_state_dict(rank["stream"], rank["rng"])
        self._window.load_state_dict(rank["window"])
        for parameter, gradient in zip(self._parameters(), rank["gradients"], strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.loss_meter.load_state_dict(rank["loss_meter"])
        for metric in self.metrics:
            if hasattr(metric, "load_state_dict") and (values := rank["metrics"].get(metric_name(metric))):
                metric.load_state_dict(values)
        if self._stream.step:
            forgetful = [metric_name(metric) for metric in self.metrics if not hasattr(metric, "state_dict")]
            if forgetful:
                warnings.warn(
                    f"{', '.join(forgetful)} of the interrupted epoch will miss the batches before the interruption: "
                    "give the metric state_dict() and load_state_dict()",
                    stacklevel=3,
                )
        set_rng(rank["rng"], self.device)

    def _end_training(self) -> None:
        """The last training batch of an epoch is done. A run that stops before the next epoch resumes from here."""
        self._trained_to_end = copy.deepcopy(self._of_this_rank())

    def _end_epoch(self) -> None:
        """The epoch is complete; the next one begins at its first batch."""
        self.history.append({"epoch": self.epoch + 1, **self.logs})
        self.epoch += 1
        self._trained_to_end = None
        if self._stream:
            self._stream.end_epoch()

    def _of_this_rank(self) -> dict[str, Any]:
        if self._stream is None:
            raise RuntimeError("there is no run to save yet: the state of a run exists once fit has begun")
        metrics = [metric for metric in self.metrics if hasattr(metric, "state_dict")]
        return {
            "rng": get_rng(self.device),
            "stream": self._stream.state_dict(),
            "window": self._window.state_dict(),
            "gradients": [parameter.grad for parameter in self._parameters()] if self._window.is_open else [],
            "loss_meter": self.loss_meter.state_dict(),
            "metrics": {metric_name(metric): dict(metric.state_dict()) for metric in metrics},
        }

    def _settings(self) -> dict[str, Any]:
        loader = self._stream.loader if self._stream else None
        batch_size = getattr(loader, "batch_size", None)
        return {
            "epochs": self.num_epochs,
            "batches an epoch": self._stream.size if self._stream else None,
            "batch_size": batch_size if isinstance(batch_size, int) else None,
            "accumulate_steps": self.accumulate_steps,
        }

    def _with_memory(self) -> Iterator[tuple[str, Any]]:
        """The callbacks that have a state, by class name; the second of a class is ``Name.1``."""
        seen: dict[str, int] = {}
        for callback in self.callbacks:
            name = type(callback).__name__
            count = seen[name] = seen.get(name, -1) + 1
            if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
                yield (f"{name}.{count}" if count else name), callback

    def _parameters(self) -> Iterator[Tensor]:
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])


def _bare(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The entries of a model's state under the names they have without DDP, DataParallel and torch.compile."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    for name, value in model.state_dict().items():
        yield name.replace("_orig_mod.", ""), value


def _check_same_model(saved: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    wrong = {
        "missing": [name for name in own if name not in saved],
        "unexpected": [name for name in saved if name not in own],
        "shape": [
            f"{name} {tuple(saved[name].shape)} -> {tuple(own[name].shape)}"
            for name in own
            if name in saved and saved[name].shape != own[name].shape
        ],
    }
    if any(wrong.values()):
        lines = "".join(f"\n  {kind}: {', '.join(names)}" for kind, names in wrong.items() if names)
        raise ValueError(f"the state is of another model; nothing was loaded:{lines}")
