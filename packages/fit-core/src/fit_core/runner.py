"""The training loop: `fit` runs the epochs, `_run_epoch` the batches of a loader, `_make_step` one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import checks
from .arguments import no_other_arguments
from .batch import split_for_prediction, split_if_pair, split_pair
from .callback import LIFECYCLE, Callback
from .history import History
from .loaders import warn_shuffled
from .metric import Metric, as_metrics, metric_name
from .models import keep_modes
from .notes import add_note
from .outputs import Outputs
from .parameters import check_steps_alone
from .resume import Resume
from .run import Run, hooks_of, owners
from .signatures import check_overrides
from .state import RunnerState
from .stream import Stream

__all__ = ["Runner"]


class Runner:
    """Train a model: `Runner(model, optimizer, criterion).fit(loader, epochs=5)`.

    Args:
        model: any module, on the device where it should run. Called as `model(input)`.
        optimizer: over the model's parameters.
        criterion: `criterion(output, target)` returns the mean loss of the batch, a 0-dim tensor, or a dict of
            losses, of which `"loss"` is trained on and all are logged. May be None if `forward` is overridden.
        metrics: objects with `update(output, target)`, `compute()`, `reset()` (see `Metric`), and plain
            functions `f(output, target) -> scalar`, which are averaged by `state.weight`.
        callbacks: called in this order at each hook (see `Callback`).
        accumulate_steps: batches per optimizer step, 1 or more. The gradient of a step is the weighted mean over its
            batches. The last, shorter window of an epoch is stepped too.
        use_fp16: run forward and loss in float16 where autocast considers it safe, with a gradient scaler.
        use_bf16: the same in bfloat16, which does not need a scaler.
        **unknown: refused. The message says what to type for the arguments of other libraries.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, the model is on several devices, or two metrics have the same name.

    Examples:
        >>> runner = Runner(model, torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss())
        >>> history = runner.fit(train_loader, epochs=5, val_loader=val_loader)
        >>> history[-1]
        {'epoch': 5, 'train/loss': 0.21, 'lr': 0.001, 'val/loss': 0.24}
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[[Any, Any], Any] | None,
        metrics: Iterable[Metric | Callable[[Any, Any], Any]] = (),
        callbacks: Iterable[Callback] = (),
        *,
        accumulate_steps: int = 1,
        use_fp16: bool = False,
        use_bf16: bool = False,
        **unknown: NoReturn,
    ) -> None:
        no_other_arguments("Runner", unknown)
        check_overrides(type(self), Runner)
        if criterion is None and (self._has_own("forward") or self._has_own("_make_step")):
            criterion = _no_loss
        checks.runner(model, optimizer, criterion, accumulate_steps, use_fp16 and use_bf16)
        assert criterion is not None
        device = checks.device(model, criterion)
        scaler = torch.amp.GradScaler(device.type, enabled=use_fp16)
        parts = as_metrics(metrics), checks.callbacks(callbacks)
        self.state = RunnerState(model, optimizer, criterion, *parts, accumulate_steps, device, scaler)
        checks.metrics(model, criterion, self.state.metrics)
        self.state.checkpoint = self._resume = Resume(self.state)
        self._half = torch.float16 if use_fp16 else torch.bfloat16 if use_bf16 else None
        self._run: Run

    def fit(
        self,
        train_loader: Iterable[Any],
        epochs: int = 1,
        *,
        val_loader: Iterable[Any] | None = None,
        steps_per_epoch: int | None = None,
        val_steps: int | None = None,
        validate_every: int = 1,
        **unknown: NoReturn,
    ) -> History:
        """Train, and validate after each epoch.

        Args:
            train_loader: any iterable of pairs `(input, target)`, each any nesting of tensors.
            epochs: epochs of the whole run, including those before a resume.
            val_loader: the same, to validate on.
            steps_per_epoch: batches that make an epoch. The loader's iterator is then kept from epoch to epoch and
                starts over when it runs out. Without it, an epoch is one pass.
            val_steps: validate on at most this many batches.
            validate_every: validate every that many epochs.
            **unknown: refused. The message says what to type for the arguments of other libraries.

        Returns:
            One dict per epoch with its number, its results by name (`train/loss`, `val/Acc@1`) and the learning rate.
            If the run was stopped inside an epoch, the last dict has its results so far and `"stopped_after_batch"`.

        Raises:
            TypeError: an argument, a batch or a loss has the wrong type, such as a Dataset where a loader belongs.
            ValueError: an argument is out of range, a loader is empty, a batch or a loss has the wrong shape, or the
                optimizer belongs to another model.
        """
        state = self.state
        no_other_arguments("fit", unknown)
        checks.can_train(state)
        device = checks.device(state.model, state.criterion)
        stream = Stream(train_loader, steps_per_epoch, window=state.accumulate_steps, device=device)
        checks.fit(stream, epochs, val_loader, val_steps, validate_every)
        run = self._begin(device, stream)
        state.num_epochs, state.batches_per_epoch = epochs, stream.size
        state.train_loader, state.val_loader = train_loader, val_loader
        self._resume.begin(run)
        state.should_stop, state.status = False, "running"
        unfinished: list[dict[str, float]] = []
        try:
            with keep_modes(run.modules()), run.in_this_thread():
                run.call("on_begin")
                self._resume.finish_loading()
                while state.epoch < epochs and not state.should_stop:
                    run.begin_epoch()
                    run.call("on_epoch_begin")
                    complete = self._run_epoch(train_loader, "train")
                    if complete and val_loader is not None and (state.epoch + 1) % validate_every == 0:
                        complete = self._run_epoch(val_loader, "val", val_steps)
                    if not complete:
                        unfinished = [run.unfinished_row()]
                        break
                    run.call("on_epoch_end")
                    run.end_epoch()
                    run.call("on_checkpoint")
                if state.status == "running":
                    state.status = "interrupted" if unfinished else "finished"
        except BaseException as error:
            state.error = error
            state.status = "failed" if isinstance(error, Exception) else "interrupted"
            add_note(error, state)
            raise
        finally:
            stream.close()
            try:
                run.call_each("on_end")
            finally:
                run.end()
        return state.history + unfinished

    def evaluate(self, loader: Iterable[Any], *, steps: int | None = None, name: str = "val") -> dict[str, float]:
        """Return loss and metrics of a loader, such as `{"val/loss": 0.6, "val/Acc@1": 0.9}`.

        It does not change the state of a run, so a callback may call it during one, in `on_epoch_end` for example.

        Args:
            loader: any iterable of pairs `(input, target)`.
            steps: evaluate at most this many batches.
            name: the first part of the names in the result, `test` for `test/loss`.

        Raises:
            TypeError: the loader or a batch has the wrong type.
            ValueError: the loader is empty, or a batch has the wrong shape.
        """
        checks.loader("loader", loader, steps)
        with self._beside_the_run():
            self._run_epoch(loader, name, steps)
            return self.state.logs

    def predict(self, loader: Iterable[Any], *, steps: int | None = None) -> Any:
        """Return the model's outputs for a loader, on the CPU, joined along the first dimension in loader order.

        Args:
            loader: any iterable of inputs, or of pairs `(input, target)` whose target is not needed.
            steps: predict at most this many batches.

        Returns:
            The output of the model, with each tensor in it joined over all batches. A list with an entry per sample
            becomes the list of all samples. Outputs that autocast has computed in half precision are converted to
            float32, which NumPy supports too. Each of several processes returns the outputs of its own loader.

        Raises:
            TypeError: the loader or a batch has the wrong type.
            ValueError: the loader is empty, or outputs differ in more than the first dimension.
        """
        checks.loader("loader", loader, steps)
        warn_shuffled(loader)
        outputs = Outputs(self._half)
        with self._beside_the_run(predicts=True) as run:
            run.hooks["on_batch_end"].append(lambda state: outputs.add(state.output, state.batch_size))
            self._run_epoch(loader, "predict", steps)
        return outputs.joined()

    def _run_epoch(self, loader: Iterable[Any], name: str, steps: int | None = None) -> bool:
        """Run all batches of a loader. Return False if `should_stop` ended it early."""
        state, run = self.state, self._run
        run.begin_loader(loader, name, steps)
        run.call("on_loader_begin")
        with torch.set_grad_enabled(state.is_train):
            for state.batch_idx, batch in run.batches():
                run.load_batch(batch)
                run.call("on_batch_begin")
                with run.gradient_exchange:
                    state.make_step()
                run.update_meters()
                run.call("on_batch_end")
                if state.is_train:
                    run.call("on_checkpoint")
                if state.should_stop and run.may_leave():
                    return False
        if not run.end_loader():
            return False
        run.call("on_loader_end")
        return True

    def _make_step(self) -> None:
        """Run one batch: forward and loss, in training backward, and at the end of a window the optimizer's step.

        Override it in a subclass for complete control, or assign a function without arguments to
        `runner._make_step`. The batch is in `state.input` and `state.target` (or, if it is not a pair, all of it
        in `state.input`). The step should set `state.output` for metrics and `state.loss` for the logs.
        For another way to compute the loss, override `forward` instead.

        Examples:
            A step that keeps AMP, accumulation and the hooks:

            ```python
            class MyRunner(Runner):
                def _make_step(self):
                    state = self.state
                    with self.autocast():
                        state.output = state.model(state.input)
                        state.loss = state.criterion(state.output, state.target)
                    if state.is_train:
                        self.backward(state.loss)
                        self.optimizer_step()
            ```
        """
        state, run = self.state, self._run
        if state.is_train and state.optimizer not in run.cleared:
            run.drop_gradients(state.optimizer)
        with run.autocast:
            self.forward()
        if state.batch_idx == 0 or not isinstance(state.loss, Tensor):
            run.check_loss("forward" if self._has_own("forward") else "criterion")
        if state.is_train:
            self.backward(state.loss)
            self.optimizer_step()

    def forward(self) -> None:
        """Compute `state.output` and `state.loss` of the batch.

        Override it for batches that are not pairs, models that return their loss, or several losses. AMP, accumulation,
        clipping, hooks, weights, metrics and `predict` keep working. A batch that is not a pair is in `state.input`
        whole. You may set:

        * `state.output`, for metrics and `predict`.
        * `state.loss`, a 0-dim tensor, or a dict of losses, of which `"loss"` is trained on. In evaluation it may be
          None, and in `predict`, where `state.needs_loss` is False, it is not needed.
        * `state.target`, for metrics.
        * `state.batch_size` and `state.weight`, the number that the mean loss is a mean over.

        Examples:
            A Hugging Face model, whose loss is a mean over the labels that are not ignored:

            ```python
            class MyRunner(Runner):
                def forward(self):
                    state = self.state
                    result = state.model(**state.input)
                    state.output, state.loss = result.logits, result.loss
                    state.target = state.input["labels"]
                    state.weight = (state.target != -100).sum()
            ```
        """
        state = self.state
        state.output = state.model(state.input)
        if state.needs_loss:
            state.loss = state.criterion(state.output, state.target)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for a forward pass in half precision. It does nothing if the Runner runs in float32."""
        self._run.used_autocast = True
        return self._run.new_autocast()

    def backward(self, loss: Any, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Compute the gradients of a loss, weighted for its accumulation window and scaled for fp16.

        Drops the gradients of the last window first, and calls `on_after_backward` at the end.

        Args:
            loss: the mean loss of the batch, a 0-dim tensor, or a dict of losses.
            optimizer: compute the gradients of this optimizer's parameters only, for steps with several optimizers.
        """
        state, run = self.state, self._run
        run.used_backward = True
        if not isinstance(loss, Tensor):
            loss = run.total_loss(loss)
        if not run.cleared:
            run.drop_gradients(state.optimizer)
        if optimizer is not None and optimizer not in run.cleared:
            run.drop_gradients(optimizer)
        if not run.window.is_trivial:
            loss = loss / run.loss_divisor()
        if run.scales:
            loss = state.grad_scaler.scale(loss)
        if optimizer is None:
            loss.backward()
        else:
            loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
        if run.hooks["on_after_backward"]:
            run.call("on_after_backward")

    def optimizer_step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Step the optimizer if the batch is the last of its accumulation window, after `on_before_step`.

        Args:
            optimizer: the optimizer to step, by default the Runner's. In `on_before_step` it is `state.optimizer`.
        """
        state, run = self.state, self._run
        run.used_optimizer_step = True
        if not state.is_optimizer_step:
            return
        if optimizer is None:
            optimizer = state.optimizer
        if run.scales:
            if optimizer in run.stepped:  # a second step in this batch
                state.grad_scaler.update()
            run.stepped.append(optimizer)
        run.cleared = [] if run.cleared == [optimizer] else [other for other in run.cleared if other is not optimizer]
        if run.hooks["on_before_step"]:
            state.grad_scaler.unscale_(optimizer)
            own, state.optimizer = state.optimizer, optimizer
            try:
                run.call("on_before_step")
            finally:
                state.optimizer = own
        state.grad_scaler.step(optimizer)

    def _begin(self, device: torch.device, stream: Stream | None = None) -> Run:
        """Start a run with the current device, processes, callbacks and metrics."""
        state = self.state
        if hasattr(self, "_run"):
            self._run.check_thread()
        if device.type != state.device.type:
            state.grad_scaler = torch.amp.GradScaler(device.type, enabled=self._half is torch.float16)
        state.device, state.make_step = device, self._make_step
        has_own_step = self._has_own("_make_step")
        if stream is not None and not has_own_step:
            check_steps_alone(state.optimizer)
        if has_own_step or self._has_own("forward"):
            split = split_if_pair  # may take any batch
        else:
            split = split_pair if state.needs_loss else split_for_prediction
        self._run = Run(state, split, self._half, stream, checks_step=has_own_step)
        if stream is not None:
            state.loop = self._run
            state.loader_name = ""  # An error before the first loader is not in that of the last run.
        return self._run

    @contextmanager
    def _beside_the_run(self, *, predicts: bool = False) -> Iterator[Run]:
        """Use another state, other meters and other metrics than the run in progress."""
        state, run = self.state, getattr(self, "_run", None)
        self.state = copy.copy(state)
        self.state.logs, self.state.loss_meters, self.state.loader_name, self.state.should_stop = {}, {}, "", False
        if run is not None and (run.is_running or run.is_in_loader):  # The run and its callbacks need the metrics.
            self.state.metrics = copy.deepcopy(state.metrics)
        if predicts:
            self.state.metrics, self.state.criterion, self.state.needs_loss = [], _no_loss, False
        try:
            beside = self._begin(checks.device(self.state.model, self.state.criterion))
            with keep_modes(beside.modules()), beside.in_this_thread():
                yield beside
        except Exception as error:
            add_note(error, self.state)
            raise
        finally:
            self.state = state
            if run is not None:
                self._run = run
                if run.is_in_loader and state.is_train:
                    run.set_optimizer_mode(is_train=True)

    def _has_own(self, name: str) -> bool:
        """Return whether a method was overridden or assigned."""
        return getattr(getattr(self, name), "__func__", None) is not getattr(Runner, name)

    def __repr__(self) -> str:
        """Return the parts of the Runner, and the callbacks at each hook, in the order of their calls."""
        state = self.state
        parts = ", ".join(type(part).__name__ for part in (state.model, state.optimizer, state.criterion))
        metrics = ", ".join(map(metric_name, state.metrics)) or "none"
        hooks = {hook: owners(methods) for hook, methods in hooks_of(state.callbacks).items()}
        lines = [f"{line:<28}{', '.join(hooks[line.strip()])}".rstrip() for line in LIFECYCLE.splitlines()]
        half = f" with autocast to {str(self._half).removeprefix('torch.')}" if self._half else ""
        return "\n".join([f"Runner({parts}) on {state.device}{half}, metrics: {metrics}", *lines])


def _no_loss(output: Any, target: Any) -> None:
    """Replace the criterion in `predict`, and for a `forward` that computes the loss itself."""
