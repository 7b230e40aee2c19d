"""Save a run as a dict and restore it, bit for bit."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .history import History
from .loaders import batch_size
from .metric import metric_name
from .models import bare_name, unwrap
from .parameters import check_optimizer, describe, given_settings, restore_frozen, warn_of_other_settings
from .place import convert
from .random_state import packed, set_random_state
from .run import Run
from .state import RunnerState
from .weights import check_state, load_state, state_of
from .window import Window

__all__ = ["FORMAT", "Resume"]

FORMAT = 1
"""The number of the layout that `Resume.state_dict` writes."""


class Resume:
    """Save everything about a run as a dict, and restore it. See `RunnerState.state_dict`.

    Args:
        state: the state of the Runner.
    """

    def __init__(self, state: RunnerState) -> None:
        self._state = state
        self._model = state.model
        self._run: Run | None = None
        self._loaded: dict[str, Any] | None = None
        self._given: dict[str, Any] = {}
        """The settings of the program at the start of the run, before callbacks changed them."""

    def begin(self, run: Run) -> None:
        """Start a run of `fit`: from scratch, unless a state was loaded for it."""
        self._run, self._model, state = run, run.model, run.state
        if self._loaded is None:
            state.epoch = state.global_step = state.samples_seen = 0
            state.logs, state.history = {}, History()
            self._given = self._given_now()

    def finish_loading(self) -> None:
        """Restore the rest of a loaded state after the `on_begin` of all callbacks."""
        saved, self._loaded = self._loaded, None
        if saved is None:
            return
        assert self._run is not None
        run, state = self._run, self._state
        then, now = {**saved["settings"], "processes": len(saved["ranks"])}, _settings(run)
        changed = [name for name in now if then[name] != now[name]]
        is_same_processes = keeps_results = "processes" not in changed
        rank = saved["ranks"][state.rank if state.rank < len(saved["ranks"]) else 0]
        place = rank["stream"]
        if set(_OF_BATCHES) & set(changed):
            place = convert(place, then, now)
            # The gradients of an open window are dropped, and its batches come again. So they do not count yet.
            counted, stepped, before = rank["samples"]
            state.samples_seen = before + sum(of_rank["samples"][1] for of_rank in saved["ranks"])
            samples = [stepped, stepped, before]
            rank = {**rank, "gradients": [], "window": Window(1).state_dict(), "samples": samples}
            if counted != stepped:
                keeps_results, rank = False, {**rank, "losses": {}, "metrics": {}, "has_outputs": False}
        random = rank["random"]
        if state.rank >= len(saved["ranks"]):  # Its random state was not saved.
            place["pass_start"] = {name: part for name, part in place["pass_start"].items() if name != "random"}
            random = None
        run.go_to(place, random, samples_before=rank["samples"][-1])
        callbacks = dict(_stateful_callbacks(state))
        for name, callback in callbacks.items():
            if name in saved["callbacks"]:
                callback.load_state_dict(saved["callbacks"][name])
        _warn_of_other_callbacks(saved["callbacks"], callbacks)
        if changed:
            is_partial = place["batches_done"] > 0 and not keeps_results
            warnings.warn(_changes(changed, then, now, place, is_partial=is_partial), stacklevel=3)
        restore_frozen(then["optimizer"]["frozen"], self._model, state.criterion)
        if is_same_processes:
            run.load_state_dict(rank)
            unknown = [metric for metric in state.metrics if metric_name(metric) not in rank["metrics"]]
            if unknown and place["batches_done"] and keeps_results:
                forgets = any(not hasattr(metric, "state_dict") for metric in unknown)
                hint = "Add state_dict() and load_state_dict() to the metric" if forgets else "It is new"
                warnings.warn(
                    f"{', '.join(map(metric_name, unknown))} of the interrupted epoch will miss the batches before the "
                    f"interruption. {hint}",
                    stacklevel=3,
                )
        if random is not None:
            set_random_state(random, state.device)

    def state_dict(self) -> dict[str, Any]:
        """See `RunnerState.state_dict`."""
        if self._run is None:
            raise RuntimeError("expected a run to save, got none yet. Call fit first")
        state = self._state
        saved = {
            "format": FORMAT,
            "model": {bare_name(name): value for name, value in unwrap(self._model).state_dict().items()},
            "criterion": dict(state_of(unwrap(state.criterion))),
            "optimizer": state.optimizer.state_dict(),
            "grad_scaler": state.grad_scaler.state_dict(),
            "epoch": state.epoch,
            "global_step": state.global_step,
            "samples_seen": state.samples_seen,
            "logs": dict(state.logs),
            "history": [dict(row) for row in state.history],
            "settings": {
                **_settings(self._run),
                "optimizer": describe(state.optimizer, self._model, state.criterion),
                "given": self._given,
            },
            "callbacks": {name: callback.state_dict() for name, callback in _stateful_callbacks(state)},
            "ranks": [_of_rank(self._run)],
        }
        return _without_numpy(saved) if "numpy" in sys.modules else saved

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """See `RunnerState.load_state_dict`."""
        if saved["format"] > FORMAT:
            raise ValueError(f"expected a state of format {FORMAT} or older, got {saved['format']}. Upgrade fit-core")
        state, model, criterion = self._state, unwrap(self._model), unwrap(self._state.criterion)
        check_state("model", saved["model"], model)
        check_state("criterion", saved["criterion"], criterion)
        settings = saved["settings"]
        check_optimizer(settings["optimizer"], state.optimizer, model, state.criterion)
        given = self._given_now() if self._run is None else self._given
        warn_of_other_settings(settings["given"], given)
        self._given = settings["given"]
        state.optimizer.load_state_dict(saved["optimizer"])
        load_state(model, saved["model"])
        load_state(criterion, saved["criterion"])
        if saved["grad_scaler"]:  # It is empty without fp16.
            state.grad_scaler.load_state_dict(saved["grad_scaler"])
        state.epoch, state.global_step = saved["epoch"], saved["global_step"]
        state.samples_seen = saved["samples_seen"]
        state.logs, state.history = dict(saved["logs"]), History(dict(row) for row in saved["history"])
        self._loaded = saved

    def _given_now(self) -> dict[str, Any]:
        return given_settings(self._state.optimizer, self._model, self._state.criterion)


def _of_rank(run: Run) -> dict[str, Any]:
    """Return the part of the state that differs between processes, with random states as they are saved."""
    rank = run.state_dict()
    place = rank["stream"]
    start = place["pass_start"]
    if "random" in start:
        start = {**start, "random": packed(start["random"])}
    place = {**place, "pass_start": start, "before_peek": packed(place["before_peek"])}
    return {**rank, "random": packed(rank["random"]), "stream": place}


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings that a resumed run should have in common with the first one."""
    assert run.stream is not None
    return {
        "epochs": run.state.num_epochs,
        "batches per epoch": run.state.batches_per_epoch,
        "batch_size": batch_size(run.state.train_loader),
        "accumulate_steps": run.state.accumulate_steps,
        "steps_per_epoch": run.stream.steps,
        "processes": run.state.world_size,
        "sharded": run.wrapped.is_sharded,
        "dtype": _name(next((p.dtype for p in run.parameters() if p.is_floating_point()), torch.float32)),
        "autocast": _name(run.half) if run.half else "off",
    }


_OF_BATCHES = ("batches per epoch", "batch_size", "accumulate_steps", "steps_per_epoch", "processes", "sharded")
"""The settings that decide how samples are split into batches, and where the gradients of an open window are."""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _warn_of_other_callbacks(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Warn about callbacks without a saved state, and about saved states without a callback."""
    new = [name for name in own if name not in saved]
    gone = [name for name in saved if name not in own]
    parts = [f"{', '.join(new)} {'starts' if len(new) == 1 else 'start'} from scratch"] if new else []
    parts += [f"the saved state of {', '.join(gone)} is not used"] if gone else []
    if parts:
        warnings.warn(f"the run is resumed with other callbacks: {', and '.join(parts)}", stacklevel=4)


def _changes(
    names: list[str], then: Mapping[str, Any], now: Mapping[str, Any], place: Mapping[str, Any], *, is_partial: bool
) -> str:
    """Return the warning about settings that differ from the saved ones.

    Args:
        names: the settings.
        then: their values when the run was saved.
        now: their values now.
        place: the place in the data at which the run continues.
        is_partial: whether the training results of the epoch do not contain the batches before that place.
    """
    shown = [name for name in names if name != "steps_per_epoch" or "batches per epoch" not in names]
    text = f"the run is resumed with other settings: {', '.join(f'{n} {then[n]} -> {now[n]}' for n in shown)}"
    if place["batches_done"] and set(_OF_BATCHES) & set(names):
        size = now["batches per epoch"] or "an unknown number"
        text += f". The interrupted epoch continues after batch {place['batches_done']} of {size}"
    if "processes" in names:
        text += ". The random states of other processes cannot be restored"
    if is_partial:
        text += ". The training results of the interrupted epoch are those of its rest"
    return text


def _stateful_callbacks(state: RunnerState) -> Iterator[tuple[str, Any]]:
    """Yield the callbacks that have a state, by class name. The second of a class is `Name.1`."""
    seen: dict[str, int] = {}
    for callback in state.callbacks:
        name = type(callback).__name__
        count = seen[name] = seen.get(name, -1) + 1
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            yield (f"{name}.{count}" if count else name), callback


def _without_numpy(value: Any) -> Any:
    """Return a nested state with NumPy's arrays and numbers as lists and numbers: torch refuses to load NumPy's."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        return {key: _without_numpy(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(map(_without_numpy, value))
    return value.tolist() if type(value).__module__ == "numpy" else value
