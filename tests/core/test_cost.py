"""Compare a step with a hand-written loop by counting operations of torch and calls of Python, without a clock."""

import gc
import sys
from collections import Counter

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

STEPS = 20


def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    data = [(torch.randn(4, 8), torch.randint(4, (4,))) for _ in range(2 * STEPS)]
    return model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), data


def by_hand(steps):
    """The loop: the running loss is kept on the device, in float64, as the Runner keeps it."""
    model, optimizer, criterion, data = parts()

    def run():
        total = torch.zeros((), dtype=torch.float64)
        for input, target in data[:steps]:
            optimizer.zero_grad()
            loss = criterion(model(input), target)
            loss.backward()
            optimizer.step()
            total.add_(loss.detach(), alpha=len(input))

    return run


def runner(steps, *callbacks, **options):
    model, optimizer, criterion, data = parts()
    fit = Runner(model, optimizer, criterion, callbacks=callbacks, **options).fit
    return lambda: fit(data[:steps])


class Operations(TorchDispatchMode):
    """Counts what reaches torch, backward and optimizer included."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not str(function).startswith(
            "profiler."
        ):  # marks of step() and of zero_grad(), which the Runner does without
            self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))


def operations(run):
    with Operations() as counted:
        run()
    return counted.seen


def calls(run):
    """Calls of Python functions, and from Python of built-in ones."""
    count = Counter()

    def note(frame, event, argument):
        count[event] += 1

    gc.collect()
    gc.disable()  # What other tests have left is not collected in between.
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count["call"], count["c_call"]


def a_step(measure, make):
    """Return the calls per step: the difference between 2n and n steps, a whole number because all steps are alike."""
    make(STEPS)()  # what happens once in a process is done
    few, many = measure(make(STEPS)), measure(make(2 * STEPS))
    if isinstance(few, Counter):
        many.subtract(few)
        return {name: number / STEPS for name, number in many.items() if number}
    return tuple((more - less) / STEPS for less, more in zip(few, many, strict=True))


def test_a_step_asks_of_torch_what_the_loop_by_hand_asks():
    assert a_step(operations, runner) == a_step(operations, by_hand)


def test_a_step_makes_no_more_calls_than_the_loop_by_hand():
    ours, theirs = a_step(calls, runner), a_step(calls, by_hand)
    assert ours[0] <= theirs[0]  # of Python functions: 95 and 97 with torch 2.13, 92 and 92 with 2.14
    assert ours[1] <= theirs[1]  # of built-in ones: 86 and 92, since gradients are dropped without zero_grad()


def one_batch_epochs(epochs, *, validates):
    model, optimizer, criterion, data = parts()
    data = data[:1]

    def by_hand():
        for _ in range(epochs):
            for is_train in (True, False)[: 1 + validates]:
                model.train(is_train)
                total = torch.zeros((), dtype=torch.float64)
                with torch.set_grad_enabled(is_train):
                    for input, target in data:
                        loss = criterion(model(input), target)
                        if is_train:
                            optimizer.zero_grad()
                            loss.backward()
                            optimizer.step()
                        total.add_(loss.detach(), alpha=len(input))
                float(total / len(input))

    def with_runner():
        Runner(model, optimizer, criterion).fit(data, epochs, val_loader=data if validates else None)

    return with_runner, by_hand


@pytest.mark.parametrize(("validates", "more"), [(False, 100), (True, 200)])
def test_an_epoch_of_one_batch_makes_few_calls_more_than_the_loop_by_hand(validates, more):
    """Calls of Python and built-in functions together. A copy of the random states alone would take 7000."""
    (ours, theirs), (many_ours, many_theirs) = (one_batch_epochs(n, validates=validates) for n in (STEPS, 2 * STEPS))
    for run in (ours, theirs):
        run()
    counts = [sum(calls(many)) - sum(calls(few)) for few, many in ((ours, many_ours), (theirs, many_theirs))]
    assert (counts[0] - counts[1]) / STEPS <= more


def test_callbacks_cost_the_hooks_that_they_override():
    class Silent(Callback):
        """Overrides nothing."""

    class Nothing(Callback):
        def on_batch_end(self, state):
            pass

    lean = a_step(calls, runner)
    assert a_step(calls, lambda steps: runner(steps, *[Silent() for _ in range(10)])) == lean
    ten = a_step(calls, lambda steps: runner(steps, *[Nothing() for _ in range(10)]))
    assert ten == (lean[0] + 10, lean[1])


@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 2}, {"use_bf16": True}])
def test_no_step_reads_a_value_back(options):
    seen = a_step(operations, lambda steps: runner(steps, **options))
    assert not [name for name in seen if "_local_scalar_dense" in name or "item" in name]
