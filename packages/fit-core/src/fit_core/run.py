"""Do the work around a batch, so that the loop itself can be read from top to bottom."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from . import batch_checks, exchange_checks
from .batch import SampleCounter, to_device
from .callback import HOOKS, Callback
from .loaders import batches, length, why_empty
from .metric import Metric, as_metrics
from .processes import has_process_group, rank_and_world_size
from .random_state import get_random_state
from .results import Results
from .sharded import in_step
from .state import RunnerState
from .stopping import Vote
from .stream import Stream
from .window import Window
from .wrapped import Wrapped

__all__ = ["Run", "hooks_of", "owners"]

Hook = Callable[[RunnerState], None]
_NOTHING = nullcontext()


class Run:
    """Run one call of `fit`, `evaluate` or `predict`: hooks, meters, accumulation window and place in the data.

    Args:
        state: the state that callbacks see.
        split: returns `(input, target)` of a batch.
        half: the half precision to run in, None for float32.
        stream: the training batches, None outside `fit`.
        checks_step: whether to warn if the first step uses less than the Runner's own does.

    Attributes:
        half: the half precision it runs in, None for float32.
        autocast: the context of a forward pass.
        gradient_exchange: the context of a step, in which DDP averages gradients at the end of a window only.
        hooks: the methods to call at each hook.
        window: the accumulation window.
        results: the losses, metrics and samples of the loader so far.
        wrapped: the modules that exchange gradients between processes.
        model: the model that trains, also while a callback evaluates another one.
        scales: whether a scaler for fp16 is in use.
        stepped (list): with such a scaler, the optimizers that were stepped in this batch.
        cleared: the optimizers whose parameters have only gradients of this window, and have not stepped since.
        used_autocast, used_backward, used_optimizer_step: whether the step has called these parts of the Runner.
        is_in_loader: whether a loader is running, or is about to be resumed, so that meters contain a part of it.
        has_batches: whether the loader has yielded a batch.
    """

    def __init__(
        self,
        state: RunnerState,
        split: Callable[[Any], tuple[Any, Any]],
        half: torch.dtype | None,
        stream: Stream | None,
        *,
        checks_step: bool,
    ) -> None:
        self.state = state
        self.half = half
        self._thread = 0
        self.autocast = self.new_autocast()
        self.split = split
        self.stream = stream
        self.model = state.model
        self.hooks = hooks_of(state.callbacks)
        self.stepped: list[torch.optim.Optimizer] = []
        self.cleared: list[Any] = []
        self.used_autocast = self.used_backward = self.used_optimizer_step = False
        self.is_in_loader = self.has_batches = False
        self.scales = state.grad_scaler.is_enabled()
        self._checks_step = checks_step
        self._checks_mean = True
        self._has_modes = hasattr(state.optimizer, "train") and hasattr(state.optimizer, "eval")
        self._weighing: tuple[float | Tensor, float | Tensor | None] | None = None
        self._counter = SampleCounter(None)
        self._at_rest: dict[str, Any] | None = None
        state.metrics[:] = as_metrics(state.metrics)
        self.results = Results(state, half)
        state.rank, state.world_size = rank_and_world_size()
        self._exchanges = has_process_group()
        self.window = Window(state.accumulate_steps, state.world_size if self._exchanges else 1)
        exchange_checks.gradients_are_averaged(state.model, state.criterion, state.world_size)
        exchange_checks.metrics_are_summed(state.metrics, state.world_size)
        votes = stream is not None and self._exchanges and state.world_size > 1
        self._vote = Vote(state.callbacks, state.device) if votes else None
        if self._vote is not None and self._vote.is_needed_in_batches:
            self.hooks["on_batch_end"].append(self._vote.take_in_training)
        self.gradient_exchange: AbstractContextManager[Any] = _NOTHING
        self.wrapped = Wrapped(self.modules())
        if stream is not None:
            for gradient in self.wrapped.unreduced():  # of a window in which the last run ended
                gradient.grad = None

    def new_autocast(self) -> AbstractContextManager[Any]:
        """Return another context of a forward pass. Contexts can be nested, but one cannot be entered twice."""
        return _NOTHING if self.half is None else torch.autocast(self.state.device.type, self.half)

    def check_thread(self) -> None:
        """Check that no other thread is using the Runner.

        Raises:
            RuntimeError: one is.
        """
        if self._thread not in (0, threading.get_ident()):
            raise RuntimeError(
                "expected one thread to use this Runner, got a second one. Create a Runner for each thread"
            )

    @property
    def is_running(self) -> bool:
        """Whether a thread is in this run, from `on_begin` to the last checkpoint."""
        return self._thread != 0

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """Refuse other threads meanwhile."""
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = 0

    def modules(self) -> list[nn.Module]:
        """Return the modules with a train or eval mode: the model, and the criterion if it is a module."""
        return [part for part in (self.model, self.state.criterion) if isinstance(part, nn.Module)]

    def parameters(self) -> list[Any]:
        """Return everything that may have a gradient, once."""
        others = (parameter for module in self.modules() for parameter in module.parameters())
        found = dict.fromkeys((*_stepped_by(self.state.optimizer), *others))
        for gradient in (unreduced := self.wrapped.unreduced()):
            found.pop(gradient.whole, None)
        return [*found, *unreduced]

    def call(self, hook: str) -> None:
        """Call a hook of every callback that overrides it, in order."""
        for method in self.hooks[hook]:
            method(self.state)

    def call_each(self, hook: str) -> None:
        """Call a hook of every callback, also after one that raises. The traceback shows all errors."""
        self._call_rest(iter(self.hooks[hook]))

    def _call_rest(self, methods: Iterator[Hook]) -> None:
        for method in methods:
            try:
                method(self.state)
            finally:
                self._call_rest(methods)

    def may_leave(self) -> bool:
        """Return whether `should_stop` ends this loader. Otherwise the run stops after the epoch.

        It ends a run of `fit` only. `evaluate` and `predict` use all of their loader, even if a callback sets it.
        Several processes agree after training batches. In validation they cannot, since they may have different numbers
        of batches. So they agree at its end, and a process that leaves waits here for the others.
        """
        vote = self._vote
        if vote is None:  # one process, or evaluate and predict
            return self.stream is not None
        if self.state.is_train:
            return vote.is_needed_in_batches or not vote.is_needed
        if self.wrapped.is_sharded:  # They are in step, and stop after the same batch.
            return False
        if vote.is_needed_in_validation:
            vote.take(self.state)
        return vote.is_needed_in_validation

    def begin_epoch(self) -> None:
        """Start an epoch, or continue the one in which the run was interrupted."""
        if self.stream and not self.stream.batches_done:
            self.state.logs = {}

    def begin_loader(self, loader: Iterable[Any], name: str, steps: int | None = None) -> None:
        """Start a loader: set the modes, and empty the meters unless the run was interrupted in it."""
        state, stream = self.state, self.stream if name == "train" else None
        if stream:
            stream.begin_epoch()
        state.loader, state.loader_name, state.is_train = loader, name, stream is not None
        state.is_optimizer_step, self.gradient_exchange = False, _NOTHING
        state.num_batches = stream.size if stream else length(loader, at_most=steps)
        state.batch_idx = stream.batches_done if stream else 0
        self.has_batches = False
        self._counter = SampleCounter(loader)
        self._batches = iter(stream) if stream else batches(loader, steps, "loader")
        if self.wrapped.is_sharded and not stream and self._exchanges and state.world_size > 1:
            self._batches = in_step(self._batches, state.make_step, self._stops_validation, state.device)
        for module in self.modules():
            module.train(state.is_train)
        self.set_optimizer_mode(state.is_train and state.batch_idx != state.num_batches)  # not for the empty rest
        if state.is_train:
            self.wrapped.check_frozen()
        if not state.batch_idx:
            self.results.reset(state.samples_seen)
        self.is_in_loader = True

    def set_optimizer_mode(self, is_train: bool) -> None:
        """Call `train()` or `eval()` of an optimizer that has both, as schedule-free ones do.

        These switch between the weights to train and the weights to evaluate.
        """
        if self._has_modes:
            optimizer: Any = self.state.optimizer
            optimizer.train() if is_train else optimizer.eval()

    def batches(self) -> Iterator[tuple[int, Any]]:
        """Return the batches that are left of the loader, numbered."""
        left, self._batches = self._batches, iter(())  # A Runner that keeps no generator can be copied.
        return enumerate(left, self.state.batch_idx)

    def load_batch(self, batch: Any) -> None:
        """Move input and target of a batch to the device, and count its samples."""
        self.has_batches = True
        state, device = self.state, self.state.device
        input, target = self.split(batch)
        state.input = input if isinstance(input, Tensor) and input.device == device else to_device(input, device)
        state.target = target if isinstance(target, Tensor) and target.device == device else to_device(target, device)
        state.batch_size = self._counter.count(input, target)
        state.weight = state.output = state.loss = self._weighing = None
        if state.losses:
            state.losses = {}
        if state.is_train and self.stream:
            state.is_optimizer_step = self.stream.closes_window
            if self.stream.opens_window:
                self.cleared = []
            if self.wrapped.exchanges:
                self.gradient_exchange = _NOTHING if state.is_optimizer_step else self.wrapped.no_sync()

    def drop_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of an optimizer's last step, like zero_grad() without its bookkeeping."""
        kept = set(map(id, _stepped_by(*self.cleared))) if self.cleared else ()
        self.cleared = [*self.cleared, optimizer]
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if not kept or id(parameter) not in kept:
                    parameter.grad = None

    def check_loss(self, source: str) -> None:
        """Check the loss of a loader's first batch, before its backward pass.

        Args:
            source: the function that computed it, `criterion` or `forward`.
        """
        state = self.state
        if isinstance(state.loss, Mapping):
            self.results.split_losses()
        if state.loss is None and not state.is_train and (source == "forward" or not state.needs_loss):
            return
        batch_checks.loss(state.loss, state.is_train, source)
        if self._checks_mean and source == "criterion":
            self._checks_mean = False
            batch_checks.mean(state.criterion, state.output, state.target, state.loss)
        batch_checks.parts(state.losses)
        batch_checks.size(state.batch_size, state.weight)

    def weigh(self) -> tuple[float | Tensor, float | Tensor | None]:
        """Return the divisor of the losses of this batch, and the factor of the gradients so far, None for 1."""
        if self._weighing is None:
            self._weighing = self.window.weigh(self.results.weight(), self.state.is_optimizer_step, self.state.device)
        return self._weighing

    def loss_divisor(self) -> float | Tensor:
        """Return the divisor for the losses of this batch, with which the gradients of its window add up."""
        divisor, factor = self.weigh()
        if factor is not None:
            self._weighing = divisor, None
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        return divisor

    @property
    def has_gradients(self) -> bool:
        """Whether this batch adds to gradients that earlier batches of its window have left."""
        return bool(self.cleared)

    @contextmanager
    def rehearse(self) -> Iterator[None]:
        """Let a step run that does not count."""
        cleared, weighing, window = self.cleared, self._weighing, self.window.state_dict()
        try:
            yield
        finally:
            self.cleared, self._weighing, self.stepped = cleared, weighing, []
            self.window.load_state_dict(window)

    def note_step(self, measured: Collection[Metric] = ()) -> None:
        """Take note of a step that a callback has made in place of `make_step`.

        Args:
            measured: the metrics that have seen the batch in it.
        """
        self.cleared = [] if self.state.is_optimizer_step else [self.state.optimizer]
        self.results.note_measured(measured)

    def finish_step(self) -> None:
        """Let the scaler know that all optimizers of this batch have been stepped."""
        self.stepped = []
        self.state.grad_scaler.update()

    def measure(self, metrics: Iterable[Metric]) -> None:
        """Update metrics with the batch, in a step that a callback records."""
        self.results.measure(metrics)

    def total_loss(self, losses: Any) -> Any:
        """Return the loss to train on of a dict of losses, and keep the others to be logged."""
        self.state.loss = losses
        self.results.split_losses()
        return self.state.loss

    def update_meters(self) -> None:
        """Count the batch, and add it to the losses and the metrics, without waiting for the device."""
        if self.stepped:
            self.finish_step()
        if self._checks_step and self.state.is_optimizer_step:
            self._check_step()
        self.results.add()

    def end_loader(self) -> bool:
        """Put the results of a loader, over all processes, into the logs. Return False if one has left it early.

        Raises:
            ValueError: the loader yielded no batches, or two results have the same name.
        """
        state = self.state
        self.wrapped.reshard()
        if self._vote is not None and self._vote.is_needed_in_validation and not state.is_train:
            self._vote.take(state)
            if state.should_stop:
                return False
        if self._has_modes and not state.should_stop:  # Otherwise the run continues with weights that train.
            self.set_optimizer_mode(is_train=False)
        if state.is_train and state.val_loader is not None:
            self.rest()
        if self._exchanges:
            self.results.sum_over_processes()
        values = self.results.compute()
        if not self.has_batches and not values and not (state.is_train and state.batch_idx):
            raise ValueError(why_empty(state.loader, "the loader"))
        if state.metrics and self.has_batches and not self.results.has_outputs and not state.is_train:
            batch_checks.nothing_measured(state.metrics)
        state.logs.update({f"{state.loader_name}/{name}": value for name, value in values.items()})
        if state.is_train:
            state.logs["lr"] = float(state.optimizer.param_groups[0]["lr"])
        self.is_in_loader = False
        return True

    def end_epoch(self) -> None:
        """Add the epoch to the history, and agree whether to stop after it."""
        if self._vote is not None and self._vote.is_needed:
            self._vote.take(self.state)
        self.state.history.append({"epoch": self.state.epoch + 1, **self.state.logs})
        self.state.epoch += 1
        self._at_rest = None
        if self.stream:
            self.stream.end_epoch()

    def end(self) -> None:
        """Drop the graph of the last batch, and the exception, whose traceback would keep everything alive."""
        state = self.state
        self.is_in_loader = False
        if self._vote is not None:
            self._vote.close()
        state.output = state.loss = state.error = None
        state.losses = {}

    def unfinished_row(self) -> dict[str, float]:
        """Return the history row of an epoch that `should_stop` has left incomplete, with the results so far."""
        state = self.state
        if state.is_train:
            self.rest()
            self.end_loader()
        assert self.stream is not None
        return {"epoch": state.epoch + 1, **state.logs, "stopped_after_batch": self.stream.batches_done}

    def rest(self) -> None:
        """Keep the state to resume from, before validation and others change meters and random numbers."""
        if self._at_rest is None:
            self._at_rest = self.state_dict()
            for name in ("gradients", "metrics"):
                if self._at_rest[name]:
                    self._at_rest[name] = copy.deepcopy(self._at_rest[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the part of a run that differs between processes."""
        if self._at_rest is not None:
            return self._at_rest
        assert self.stream is not None
        return {
            "random": get_random_state(self.state.device),
            "stream": self.stream.state_dict(),
            "window": self.window.state_dict(),
            "gradients": [p.grad for p in self.parameters()] if self.stream.is_inside_window else [],
            **self.results.state_dict(is_inside=self.stream.batches_done > 0),
            "buffers": self.wrapped.own_buffers(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, except for the place in the data and the random state."""
        self.window.load_state_dict(state_dict["window"])
        if state_dict["gradients"]:  # of all parameters, for any optimizer
            self.cleared = [SimpleNamespace(param_groups=[{"params": self.parameters()}])]
        for parameter, gradient in zip(self.parameters(), state_dict["gradients"], strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.results.load_state_dict(state_dict)
        own = self.wrapped.own_buffers()
        for name, buffer in state_dict["buffers"].items():
            if name in own:
                own[name].copy_(buffer)

    def go_to(self, place: dict[str, Any], random_state: dict[str, Any] | None, *, samples_before: int) -> None:
        """Move to a place in the training data, with empty meters. See `Stream.load_state_dict`.

        Args:
            place: the place that the stream returned.
            random_state: the random state at that moment, None if it is unknown.
            samples_before: `state.samples_seen` at the start of the epoch. Rank 0 counts those since then.
        """
        assert self.stream is not None
        self.stream.load_state_dict(place, random_state)
        self.state.batch_idx, self.is_in_loader = self.stream.batches_done, True
        self.results.reset(samples_before, 0 if self.state.rank else self.state.samples_seen - samples_before)

    def _stops_validation(self) -> bool:
        return self.state.should_stop and self._vote is not None and self._vote.is_needed_in_validation

    def _check_step(self) -> None:
        """Warn if a step of the user's own does not use callbacks and settings of the run."""
        self._checks_step = False
        steps = self.used_backward and self.used_optimizer_step
        hooks = [] if self.used_backward else self.hooks["on_after_backward"]
        hooks = hooks if self.used_optimizer_step else hooks + self.hooks["on_before_step"]
        ignored = owners(hooks)
        if self.state.accumulate_steps > 1 and not steps:
            ignored.append("accumulate_steps")
        if self.half is torch.float16 and not (steps and self.used_autocast):
            ignored.append("use_fp16")
        if self.half is torch.bfloat16 and not self.used_autocast:
            ignored.append("use_bf16")
        if ignored:
            batch_checks.own_step(list(dict.fromkeys(ignored)))


def _stepped_by(*optimizers: Any) -> Iterator[Tensor]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]


def hooks_of(callbacks: Iterable[Callback]) -> dict[str, list[Hook]]:
    """Return the bound methods to call at each hook: of every callback, in order, those that it overrides."""

    def overrides(callback: Callback, hook: str) -> bool:
        return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)

    return {hook: [getattr(callback, hook) for callback in callbacks if overrides(callback, hook)] for hook in HOOKS}


def owners(methods: Iterable[Hook]) -> list[str]:
    """Return the class names of the callbacks to which the methods of a hook belong."""
    return [type(method.__self__).__name__ for method in methods]  # type: ignore[attr-defined]  # They are bound.
