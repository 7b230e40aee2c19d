"""Check that a callback keeps the protocol."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fit_core import HOOKS, Callback, History, Runner, RunnerState

from .runners import (
    CountSteps,
    FirstMemories,
    OwnStep,
    SeveralLosses,
    Snapshots,
    StopAt,
    Temperature,
    WholeBatches,
    network,
    vectors,
)
from .values import flat, from_file, to_file

__all__ = ["CALLBACK_CHECKS", "CallbackCase", "check_callback"]


@dataclass(frozen=True)
class CallbackCase:
    """Describe a callback and the run to check it in.

    Attributes:
        make: returns new callbacks that may write into a folder: the callback to check, after others that it needs.
        network: returns a new model.
        batches: returns five or more batches of (input, target) for a seed.
        metrics: returns new metrics, if the callback uses some.
        clock: names of results that measure time, which differ from run to run.
        ddp_options: options of DistributedDataParallel in two processes, if the callback needs some.
    """

    make: Callable[[Path], list[Callback]]
    network: Callable[[], nn.Module] = network
    batches: Callable[[int], list[Any]] = vectors
    metrics: Callable[[], list[Any]] = list
    clock: tuple[str, ...] = ()
    ddp_options: dict[str, Any] = field(default_factory=dict)

    def runner(
        self, callbacks: list[Callback], model: nn.Module | None = None, *, kind: type[Runner] = Runner, **options: Any
    ) -> Runner:
        """Return a Runner of this case."""
        torch.manual_seed(0)
        model, criterion = model or self.network(), nn.CrossEntropyLoss() if kind is Runner else Temperature()
        parameters = [*model.parameters(), *criterion.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        return kind(model, optimizer, criterion, self.metrics(), callbacks, **options)

    def facts(self, state: RunnerState) -> list[Any]:
        """Return the facts that are equal in two equal runs, bit for bit."""
        saved = {name: value for name, value in state.state_dict().items() if name != "settings"}
        for row in (saved["logs"], *saved["history"]):
            for name in self.clock:
                row.pop(name, None)
        return flat(saved)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"accumulate_steps": 3},
    {"use_fp16": True},
    {"use_bf16": True},
    {"accumulate_steps": 3, "use_fp16": True},
    {"accumulate_steps": 3, "use_bf16": True},
]
"""The options of the Runner in the checks."""


def check_hooks(case: CallbackCase, folder: Path) -> None:
    """Check that each `on_...` method is a hook and takes the state and nothing else."""
    for callback in case.make(folder):
        assert isinstance(callback, Callback)
        for name, method in inspect.getmembers(callback, inspect.ismethod):
            if name.startswith("on_"):
                assert name in HOOKS, f"expected {name} to be a hook"
                assert len(inspect.signature(method).parameters) == 1, f"expected {name} to take (self, state)"


def check_training(case: CallbackCase, folder: Path) -> None:
    """Check that runs end in each precision and with accumulation, and that the callback works in a second run."""
    for number, options in enumerate(OPTIONS):
        runner = case.runner(case.make(folder / str(number)), **options)
        for _ in range(2):
            train_two_epochs(runner, case.batches(0), case.batches(1), options)


def check_evaluation(case: CallbackCase, folder: Path) -> None:
    """Check that `evaluate` and `predict` return the same without a run as without the callback, and work after."""
    plain, runner = case.runner([]), case.runner(case.make(folder))
    batches = case.batches(1)
    assert flat(runner.evaluate(batches)) == flat(plain.evaluate(batches)), "evaluate differs"
    assert flat(runner.predict(batches)) == flat(plain.predict(batches)), "predict differs"
    runner.fit(case.batches(0), epochs=2, val_loader=batches)
    assert flat(runner.evaluate(batches, name="test")) == flat(runner.evaluate(batches, name="test"))
    assert flat(runner.predict(batches)) == flat(runner.predict(batches))


def check_forward(case: CallbackCase, folder: Path) -> None:
    """Check a `forward` with a dict of losses and a tensor as weight, and a criterion with a parameter."""
    for number, options in enumerate(OPTIONS[:3]):
        runner = case.runner(case.make(folder / str(number)), kind=SeveralLosses, **options)
        batches = case.batches(1)
        history = train_two_epochs(runner, case.batches(0), batches, options)
        for row in history:
            if "stopped_after_batch" not in row:
                assert {"train/loss", "train/size", "val/loss", "val/size"} <= row.keys(), "the logs lack a loss"
        runner.evaluate(batches)
        runner.predict(batches)


def check_any_batch(case: CallbackCase, folder: Path) -> None:
    """Check batches that are not pairs, so that the input is a dict and the target is None."""

    def batches(seed: int) -> list[Any]:
        return [{"input": input, "label": label, "name": ["a"] * len(input)} for input, label in case.batches(seed)]

    runner = case.runner(case.make(folder), kind=WholeBatches)
    train_two_epochs(runner, batches(0), batches(1), {})
    runner.evaluate(batches(1))
    runner.predict(batches(1))


def check_own_step(case: CallbackCase, folder: Path) -> None:
    """Check a step of the user's own, which has not set its loss yet in `on_after_backward`."""
    for number, options in enumerate((OPTIONS[0], OPTIONS[4])):
        runner = case.runner(case.make(folder / str(number)), kind=OwnStep, **options)
        train_two_epochs(runner, case.batches(0), case.batches(1), options)
        runner.evaluate(case.batches(1))
        runner.predict(case.batches(1))


def check_make_step(case: CallbackCase, folder: Path) -> None:
    """Check that a step which other callbacks wrap, before and after this one, is called for every batch."""

    def run(folder: Path, *around: Callback) -> list[Any]:
        runner = case.runner([*around[:1], *case.make(folder), *around[1:]])
        runner.fit(case.batches(0), epochs=2, val_loader=case.batches(1))
        return case.facts(runner.state)

    inner, outer = CountSteps(), CountSteps()
    assert run(folder / "wrapped", inner, outer) == run(folder / "plain"), "a wrapped step gives other results"
    for counter in (inner, outer):
        assert counter.steps == counter.batches, f"expected {counter.batches} steps, got {counter.steps}"


def check_state(case: CallbackCase, folder: Path) -> None:
    """Check that the callback's state survives a file and loads into a new callback."""
    snapshots = Snapshots()
    case.runner([*case.make(folder / "first"), snapshots]).fit(case.batches(0), epochs=2, val_loader=case.batches(1))
    for number in {2, len(snapshots.saved) - 2}:
        first = FirstMemories()
        runner = case.runner([first, *case.make(folder / str(number))])
        saved = snapshots.load(number)
        runner.state.load_state_dict(saved)
        runner.fit(case.batches(0), epochs=2, val_loader=case.batches(1))
        assert first.memories == flat(saved["callbacks"]), "the loaded state is not the saved one"


def check_resume(case: CallbackCase, folder: Path) -> None:
    """Check that an interrupted run, resumed in new objects, ends with the same bits as an uninterrupted one.

    It is interrupted inside an accumulation window, inside an epoch, and between two epochs.
    """
    for kind in (Runner, SeveralLosses):
        snapshots = Snapshots((0, 3, 5, 8))
        gold = train_three_epochs(case, [*case.make(folder / kind.__name__ / "gold"), snapshots], kind)
        for number in snapshots.saved:
            callbacks = case.make(folder / kind.__name__ / str(number))
            resumed = train_three_epochs(case, [*callbacks, Snapshots(())], kind, snapshots.load(number))
            assert case.facts(resumed.state) == case.facts(gold.state), f"interrupted after checkpoint {number}"


def check_stop(case: CallbackCase, folder: Path) -> None:
    """Check that a run stopped inside an epoch can be resumed, and that the same objects can run again."""
    gold = train_three_epochs(case, case.make(folder / "gold"))
    for place in ((1, True, 2), (1, False, 1)):  # in the middle of a window of the second epoch, and in its validation
        callbacks = case.make(folder / f"stopped {place}")
        stopped = train_three_epochs(case, [StopAt(*place), *callbacks])
        if stopped.state.epoch != 1:
            continue  # The callback itself has ended the run before.
        saved = from_file(to_file(stopped.state.state_dict()))
        resumed = train_three_epochs(case, [StopAt(), *case.make(folder / f"resumed {place}")], saved=saved)
        assert case.facts(resumed.state) == case.facts(gold.state), f"stopped at (epoch, is_train, batch_idx) {place}"
        train_two_epochs(stopped, case.batches(0), case.batches(1), {"accumulate_steps": 2})


CALLBACK_CHECKS: list[Callable[[CallbackCase, Path], None]] = [
    check_hooks,
    check_training,
    check_evaluation,
    check_forward,
    check_any_batch,
    check_own_step,
    check_make_step,
    check_state,
    check_resume,
    check_stop,
]


def check_callback(
    callback: Callback | Callable[[Path], list[Callback]], *, skip: Collection[str] = (), **case: Any
) -> None:
    """Check that a callback keeps the protocol of fit-core, in small seeded runs on the CPU.

    It is tried in each precision, with accumulation, with another `forward`, batches that are not pairs and another
    step, next to callbacks that wrap the step, in `evaluate` and `predict`, and resumed at several places. For two
    processes see `in_two_processes`. As tests of their own, the checks are in `CALLBACK_CHECKS`.

    Args:
        callback: a callback that has not run yet. Each run gets a copy. Or a function that returns new callbacks
            that may write into a folder: the one to check, after others that it needs. Or a class.
        skip: names of checks that cannot hold for this callback, such as `check_any_batch`.
        **case: other fields of `CallbackCase`: `network`, `batches`, `metrics` or `clock`.

    Raises:
        AssertionError: a check failed. The message says which, and what it checks.

    Examples:
        >>> check_callback(MyCallback(0.5))
        >>> check_callback(lambda folder: [MyLogger(folder / "log.txt")], clock=("seconds",))
    """
    make: Any = callback
    if isinstance(callback, Callback):
        make = lambda folder: [copy.deepcopy(callback)]  # noqa: E731
    elif isinstance(callback, type):
        make = lambda folder: [callback()]  # noqa: E731
    run_checks(CALLBACK_CHECKS, CallbackCase(make, **case), skip)


def run_checks(checks: list[Any], case: Any, skip: Collection[str]) -> None:
    """Run checks, each in another folder."""
    if unknown := set(skip) - {check.__name__ for check in checks}:
        raise ValueError(
            f"expected skip to name some of {', '.join(check.__name__ for check in checks)}, got "
            f"{', '.join(sorted(unknown))}"
        )
    for check in checks:
        if check.__name__ in skip:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(case, Path(folder))
            except Exception as error:
                purpose = inspect.cleandoc(check.__doc__).splitlines()[0]
                raise AssertionError(f"{check.__name__}: {error}\n({purpose})") from error


def train_two_epochs(runner: Runner, batches: list[Any], val_batches: list[Any], options: dict[str, Any]) -> History:
    """Train, and check that the run was complete and the weights are finite. Return the history."""
    history = runner.fit(batches, epochs=2, val_loader=val_batches)
    state = runner.state
    assert len(state.history) == 2 or state.should_stop, f"the run ended early with {options}"
    criterion: Any = state.criterion
    parameters = [*state.model.parameters(), *criterion.parameters()]
    assert all(parameter.isfinite().all() for parameter in parameters), f"weights are not finite with {options}"
    return history


def train_three_epochs(
    case: CallbackCase, callbacks: list[Callback], kind: type[Runner] = Runner, saved: Any = None
) -> Runner:
    """Train with accumulation, from scratch or from a saved state. Return the Runner."""
    runner = case.runner(callbacks, kind=kind, accumulate_steps=2)
    torch.manual_seed(7 if saved else 0)  # the generator of a new process may be anywhere
    if saved:
        runner.state.load_state_dict(saved)
    runner.fit(case.batches(0), epochs=3, val_loader=case.batches(1))
    return runner
