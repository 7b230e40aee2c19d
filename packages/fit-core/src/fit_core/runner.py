"""The training loop. ``fit`` holds the epochs, ``_run_epoch`` the batches of a loader, ``_make_step`` one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .batch import concat, no_loss, only_input, pair, pair_or_whole, to_device
from .callback import Callback
from .metric import Metric, as_metrics
from .state import History, RunnerState
from .stream import Stream

__all__ = ["Runner"]


class Runner:
    """Trains a model: ``Runner(model, optimizer, criterion).fit(loader, epochs=5)``.

    Args:
        model: any module, on the device where it shall run. Called as ``model(input)``.
        optimizer: over the model's parameters.
        criterion: ``criterion(output, target)`` returns the mean loss of the batch, a 0-dim tensor.
        metrics: objects with ``update(output, target)``, ``compute()``, ``reset()`` (see :class:`Metric`), and plain
            functions ``f(output, target) -> scalar``, which are averaged by samples.
        callbacks: called in this order at each hook (see :class:`Callback`).
        accumulate_steps: batches per optimizer step, 1 or more. The gradient of a step is the sample-weighted mean
            over its batches; the last, shorter window of an epoch is stepped too.
        use_fp16: run forward and loss in float16 where autocast knows it safe, with a gradient scaler.
        use_bf16: the same in bfloat16, which needs no scaler.

    Raises:
        TypeError, ValueError: something does not fit, and what to do about it.

    Example:
        >>> runner = Runner(model, torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss())
        >>> history = runner.fit(train_loader, epochs=5, val_loader=val_loader)
        >>> history[-1]
        {'epoch': 5, 'train/loss': 0.21, 'lr': 0.001, 'val/loss': 0.24}
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[[Any, Any], Tensor],
        metrics: Iterable[Metric | Callable[[Any, Any], Any]] = (),
        callbacks: Iterable[Callback] = (),
        *,
        accumulate_steps: int = 1,
        use_fp16: bool = False,
        use_bf16: bool = False,
    ) -> None:
        checks.runner(model, optimizer, criterion, callbacks, accumulate_steps, use_fp16 and use_bf16)
        device = checks.model_device(model)
        dtype = torch.float16 if use_fp16 else torch.bfloat16 if use_bf16 else None
        self._autocast = torch.autocast(device.type, dtype) if dtype else nullcontext()
        scaler = torch.amp.GradScaler(device.type, enabled=use_fp16)
        self.state = RunnerState(
            model, optimizer, criterion, as_metrics(metrics), list(callbacks), accumulate_steps, device, scaler
        )

    def fit(
        self,
        train_loader: Iterable[Any],
        *,
        epochs: int = 1,
        val_loader: Iterable[Any] | None = None,
        steps_per_epoch: int | None = None,
        val_steps: int | None = None,
        validate_every: int = 1,
    ) -> History:
        """Train, and validate after each epoch.

        Args:
            train_loader: any iterable of pairs ``(input, target)``, each any nesting of tensors.
            epochs: epochs of the whole run, those before a resume included.
            val_loader: the same, to validate on.
            steps_per_epoch: batches that make an epoch. The loader's iterator is then kept from epoch to epoch and
                starts over when it runs out. Without it, an epoch is one pass.
            val_steps: validate on the first so many batches only.
            validate_every: validate after each so many epochs.

        Returns:
            One dict an epoch, such as ``{"epoch": 1, "train/loss": 0.7, "lr": 0.1, "val/loss": 0.6}``.

        Raises:
            TypeError, ValueError: an argument, a loader or a batch does not fit, and what to do about it.
        """
        state = self._begin()
        stream = Stream(train_loader, steps_per_epoch, know_last=state.accumulate_steps > 1, device=state.device)
        checks.fit(stream, epochs, val_loader, val_steps, validate_every)
        state._start(stream, epochs, val_loader)
        try:
            state._call("on_begin")
            state._go_on()
            while state.epoch < epochs and not state.should_stop:
                if not stream.step:  # Else the run was interrupted inside this epoch.
                    state.logs = {}
                state._call("on_epoch_begin")
                complete = self._run_epoch(train_loader, stream=stream)
                if complete and val_loader is not None and (state.epoch + 1) % validate_every == 0:
                    complete = self._run_epoch(val_loader, steps=val_steps)
                if not complete:
                    break
                state._call("on_epoch_end")
                state._end_epoch()
                state._call("on_checkpoint")
        except BaseException as error:
            state.error = error
            raise
        finally:
            stream.close()
            state._call_each("on_end")
        return state.history

    def evaluate(self, loader: Iterable[Any], *, steps: int | None = None) -> dict[str, float]:
        """Loss and metrics of a loader, such as ``{"val/loss": 0.6, "val/Acc@1": 0.9}``.

        The state of a run is left alone, so a callback may call it in the middle of one, in ``on_epoch_end`` say.

        Args:
            loader: any iterable of pairs ``(input, target)``.
            steps: evaluate on the first so many batches only.

        Raises:
            TypeError, ValueError: the loader or a batch does not fit, and what to do about it.
        """
        checks.loader("loader", loader, steps)
        with self._aside() as state:
            self._run_epoch(loader, steps=steps)
            return state.logs

    def predict(self, loader: Iterable[Any], *, steps: int | None = None) -> Any:
        """The model's outputs for a loader, on the CPU, joined along the first dimension in the order of the loader.

        Args:
            loader: any iterable of inputs, or of pairs ``(input, target)`` of which the target is ignored.
            steps: predict the first so many batches only.

        Returns:
            What the model returns for a batch, each tensor in it joined over all batches. Of several processes,
            each returns the outputs of its own loader.

        Raises:
            TypeError, ValueError: the loader or a batch does not fit, and what to do about it.
        """
        checks.loader("loader", loader, steps)
        outputs: list[Any] = []
        cpu = torch.device("cpu")
        with self._aside() as state:
            state._split, state.metrics, state.criterion = only_input, [], no_loss
            state._hooks["on_batch_end"].append(lambda state: outputs.append(to_device(state.output, cpu)))
            self._run_epoch(loader, steps=steps)
        return concat(outputs)

    def _run_epoch(self, loader: Iterable[Any], *, stream: Stream | None = None, steps: int | None = None) -> bool:
        """All batches of a loader; with its stream, train on them. False when ``should_stop`` ended it early."""
        state, is_train = self.state, stream is not None
        first = state._start_loader(loader, stream, steps)  # 0, unless the run was interrupted in this epoch
        state.model.train(is_train)
        state._call("on_loader_begin")
        sync = nullcontext()
        no_sync = getattr(state.model, "no_sync", nullcontext) if is_train else nullcontext
        with torch.set_grad_enabled(is_train):
            for state.step, batch in enumerate(stream or islice(loader, steps), first):
                state._take(batch)
                closes_window = stream is not None and (stream.last or (state.step + 1) % state.accumulate_steps == 0)
                state.is_optimizer_step = closes_window
                state._call("on_batch_begin")
                with sync if closes_window else no_sync():
                    self._make_step()
                state._measure()
                state._call("on_batch_end")
                if is_train:
                    state._call("on_checkpoint")
                if state.should_stop:
                    return False
        state._end_loader()
        state._call("on_loader_end")
        return True

    def _make_step(self) -> None:
        """One batch: forward and loss; in training backward, and at the end of a window the optimizer's step.

        The place for logic of your own: override it in a subclass, or assign a function without arguments to
        ``runner._make_step``. It finds the batch in ``state.input`` and ``state.target``, and should set
        ``state.output`` (for metrics) and ``state.loss`` (for the log). A batch that is no pair is all in
        ``state.input``, and ``state.target`` is None; so it is in ``predict``, where the criterion returns None.

        Example:
            The least step there can be, without AMP, accumulation and the hooks around the optimizer::

                class MyRunner(Runner):
                    def _make_step(self):
                        state = self.state
                        state.output = state.model(state.input)
                        state.loss = state.criterion(state.output, state.target)
                        if state.is_train:
                            state.optimizer.zero_grad()
                            state.loss.backward()
                            state.optimizer.step()
        """
        state = self.state
        if state.is_train and not state._window.samples:
            for group in state.optimizer.param_groups:  # What zero_grad() does, without its bookkeeping.
                for parameter in group["params"]:
                    parameter.grad = None
        with self._autocast:
            state.output = state.model(state.input)
            if state.target is None:  # It is predict that asks.
                return
            loss = state.loss = state.criterion(state.output, state.target)
        if state.step == 0:
            checks.loss(loss, state.is_train)
        if not state.is_train:
            return
        scaler = state.grad_scaler
        if state.accumulate_steps > 1:
            loss = loss / state._window.divisor(state.batch_size, state.is_optimizer_step, state._parameters())
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        state._call("on_after_backward")
        if state.is_optimizer_step:
            if state._hooks["on_before_step"]:
                scaler.unscale_(state.optimizer)
                state._call("on_before_step")
            scaler.step(state.optimizer)
            scaler.update()

    def _begin(self) -> RunnerState:
        standard = getattr(self._make_step, "__func__", None) is Runner._make_step
        self.state._begin(split=pair if standard else pair_or_whole)  # A step of the user's own may take any batch.
        return self.state

    @contextmanager
    def _aside(self) -> Iterator[RunnerState]:
        """A state of its own for what happens beside a run, which goes on as if nothing had been."""
        run, was_training = self.state, self.state.model.training
        self.state = run._aside()
        try:
            yield self._begin()
        finally:
            self.state = run
            run.model.train(was_training)

    def __str__(self) -> str:
        return str(self.state)
