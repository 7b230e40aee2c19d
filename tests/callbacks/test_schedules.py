"""Schedules of torch and of other libraries in a longer run, on resume, and what is refused."""

import warnings

import numpy as np
import pytest
import torch
from fit_callbacks import LRScheduler
from fit_core import Callback
from scene import Snapshots, Watch, batches, load, make
from scheduled import everything, lrs_of, lrs_of_optimizer, saved_at_each_point, two_groups
from torch import nn
from torch.optim import lr_scheduler

SCHEDULES = {
    "OneCycleLR": lambda optimizer, steps: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps),
    "OneCycleLR + 1": lambda optimizer, steps: lr_scheduler.OneCycleLR(optimizer, [0.1, 0.3], total_steps=steps + 1),
    "PolynomialLR": lambda optimizer, steps: lr_scheduler.PolynomialLR(optimizer, steps),
    "CosineAnnealingLR": lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
    "LambdaLR": lambda optimizer, steps: lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (steps + 1)),
    "SequentialLR": lambda optimizer, steps: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, 1, 3), lr_scheduler.CosineAnnealingLR(optimizer, steps - 3)],
        [3],
    ),
}


def rates_by_hand(make, total, steps):
    """Return each group's rate at each step of a schedule of `total` steps."""
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-4, 1e-2)], lr=1)
    scheduler, rates = make(optimizer, total), []
    for _ in range(steps):
        rates.append(lrs_of_optimizer(optimizer))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("loads", ["before fit", "in on_begin"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:the run is resumed with other settings")
def test_a_longer_run_continues_in_the_longer_schedule(name, loads):
    make = SCHEDULES[name]
    snapshots = Snapshots()
    two_groups(snapshots, LRScheduler(make)).fit(batches(), epochs=2)

    class Load(Callback):
        def on_begin(self, state):
            state.load_state_dict(load(snapshots.saved[7]))

    def resume(saved, epochs, *callbacks):
        used = Watch("on_before_step", lrs_of)
        runner = two_groups(*callbacks, used, LRScheduler(make))
        if saved:
            runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=epochs)
        return used.seen

    first = [snapshots.saved[7], 3] if loads == "before fit" else [None, 3, Load()]
    again = Snapshots()
    with pytest.warns(UserWarning, match="was made for 10 steps and is resumed for 15.*continues at step 7"):
        rates = resume(*first, again)
    assert rates == rates_by_hand(make, 15, 15)[7:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resume(again.saved[4], 3) == rates[4:]


@pytest.mark.filterwarnings("ignore:the run is resumed with other settings")
def test_other_steps_per_epoch_end_the_schedule_with_the_run():
    make = SCHEDULES["LambdaLR"]
    snapshots, again = Snapshots(), Snapshots()
    two_groups(snapshots, LRScheduler(make)).fit(batches(), epochs=4)

    def resume(saved, *callbacks):
        used = Watch("on_before_step", lrs_of)
        runner = two_groups(*callbacks, used, LRScheduler(make), accumulate_steps=2)
        runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=4)
        return used.seen

    with pytest.warns(UserWarning, match="was made for 20 steps and is resumed for 14"):
        rates = resume(snapshots.saved[5], again)  # an epoch of 5 steps, and three of 3
    assert rates == rates_by_hand(make, 14, 14)[5:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resume(again.saved[2]) == rates[1:]


def test_a_finished_run_that_is_asked_for_fewer_epochs_keeps_its_schedule():
    snapshots = Snapshots()
    two_groups(snapshots, LRScheduler(SCHEDULES["OneCycleLR"])).fit(batches(), epochs=2)
    runner = two_groups(LRScheduler(SCHEDULES["OneCycleLR"]))
    runner.state.load_state_dict(load(snapshots.saved[-1]))
    with pytest.warns(UserWarning, match="with other settings: epochs 2 -> 1"):
        assert len(runner.fit(batches(), epochs=1)) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda o, n: lr_scheduler.CosineAnnealingLR(o, n),
            r"the CosineAnnealingLR .*: T_max 5 -> 8\. Make it as before",
        ),
        (lambda o, n: lr_scheduler.MultiStepLR(o, [n]), r"milestones \[\(5, 1\)\] -> \[\(8, 1\)\]"),
        (lambda o, n: lr_scheduler.OneCycleLR(o, 0.1, total_steps=n), "total_steps 5 -> 8"),
        (
            lambda o, n: lr_scheduler.SequentialLR(
                o, [lr_scheduler.ConstantLR(o), lr_scheduler.CosineAnnealingLR(o, n)], [2]
            ),
            "1.T_max 5 -> 8",
        ),
    ],
)
def test_a_scheduler_made_with_other_arguments_is_refused_with_both(make, message):
    def run(length, saved=None):
        snapshots, runner = Snapshots(), two_groups()
        schedule = LRScheduler(make(runner.state.optimizer, length), interval="epoch")
        runner.state.callbacks += [snapshots, schedule]
        if saved:
            runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=3)
        return snapshots.saved

    saved = run(5)
    run(5, saved[7])
    with pytest.raises(ValueError, match=message):
        run(8, saved[7])


def test_a_rate_of_numpy_is_saved_as_a_number():
    def run(callbacks, saved=None):
        make = lambda o, n: lr_scheduler.LambdaLR(o, lambda step: np.cos(step / n))  # noqa: E731
        runner = two_groups(*callbacks, LRScheduler(make))
        if saved:
            runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=2)
        return runner

    places, gold = saved_at_each_point(run)
    assert type(load(places[3])["optimizer"]["param_groups"][0]["lr"]) is float
    for saved in places[::3]:
        assert everything(run([], saved)) == gold


class Timm:
    """timm's schedulers, as far as a training loop sees them: a number of updates or epochs gives the rate."""

    def __init__(self, optimizer, rate, by_epoch):
        self.optimizer, self.rate, self.by_epoch = optimizer, rate, by_epoch
        self.step(0)

    def step(self, epoch, metric=None):
        if self.by_epoch:
            self.optimizer.param_groups[0]["lr"] = self.rate / (1 + epoch)

    def step_update(self, num_updates, metric=None):
        if not self.by_epoch:
            self.optimizer.param_groups[0]["lr"] = self.rate / (1 + num_updates)

    def state_dict(self):
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state_dict):
        vars(self).update(state_dict)


@pytest.mark.parametrize("by_epoch", [True, False])
def test_schedulers_of_timm_are_called_after_steps_and_epochs(by_epoch):
    def run(callbacks, saved=None):
        runner = make(*callbacks)
        runner.state.callbacks.append(LRScheduler(Timm(runner.state.optimizer, 0.1, by_epoch)))
        if saved:
            runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=3)
        return runner

    used = Watch("on_before_step", lambda state: state.optimizer.param_groups[0]["lr"])
    run([used])
    assert used.seen == [0.1 / (1 + (step // 5 if by_epoch else step)) for step in range(15)]
    places, gold = saved_at_each_point(run)
    for saved in places[::4]:
        assert everything(run([], saved)) == gold


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (None, "got None. Write LRScheduler"),
        (lr_scheduler.StepLR, "got the class StepLR. Write LRScheduler"),
        (0.1, "got 0.1"),
        (torch.optim.SGD([torch.zeros(1)]), "got SGD"),
    ],
)
def test_what_is_no_scheduler_is_refused(scheduler, message):
    with pytest.raises(TypeError, match=f"expected a scheduler or a function that makes one, {message}"):
        LRScheduler(scheduler)


def test_a_function_that_makes_no_scheduler_is_refused():
    with pytest.raises(TypeError, match="expected a scheduler from the function, got None"):
        make(LRScheduler(lambda optimizer, steps: None)).fit(batches())
    with pytest.raises(ValueError, match=r"Use fit_callbacks\.ReduceLROnPlateau"):
        make(LRScheduler(lambda optimizer, steps: lr_scheduler.ReduceLROnPlateau(optimizer))).fit(batches())


@pytest.mark.parametrize("kind", ["LambdaLR", "OneCycleLR", "StepLR"])
def test_a_group_that_is_added_works_or_is_named(kind):
    class Add(Callback):
        def on_epoch_begin(self, state):
            if state.epoch == 1:
                state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})

    makers = {**SCHEDULES, "StepLR": lambda optimizer, steps: lr_scheduler.StepLR(optimizer, 1)}
    runner = make(Add(), LRScheduler(makers[kind]))
    if kind == "StepLR":
        runner.fit(batches(), epochs=2)
        assert len(set(lrs_of(runner.state))) == 2
    else:
        with pytest.raises(
            ValueError, match=f"the {kind} was made for 1 parameter groups, and the optimizer has 2 now"
        ):
            runner.fit(batches(), epochs=2)
