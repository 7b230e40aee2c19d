"""Schedules over several parameter groups, on resume, of other libraries, and what is refused."""

import math

import pytest
import torch
from fit_callbacks import Phase, PhasesScheduler
from fit_core import Callback, Runner
from scene import Snapshots, Watch, batches, flat, load, make, network
from torch import nn


def lrs_of(state):
    return [group["lr"] for group in state.optimizer.param_groups]


def two_groups(*callbacks, lrs=(1e-4, 1e-2), **options):
    """A run whose body and head have learning rates of their own."""
    model = network()
    parts = ([*model[0].parameters(), *model[1].parameters()], model[4].parameters())
    groups = [{"params": part, "lr": lr} for part, lr in zip(parts, lrs, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    return Runner(model, optimizer, nn.CrossEntropyLoss(), (), callbacks, **options)


def saved_at_each_point(run):
    """The snapshots of a run, and its last state."""
    snapshots = Snapshots()
    runner = run([snapshots])
    return snapshots.saved, everything(runner)


def everything(runner):
    return flat({name: value for name, value in runner.state.state_dict().items() if name != "settings"})


# PhasesScheduler


def test_groups_keep_their_ratios_and_the_largest_follows_the_phases():
    used = Watch("on_before_step", lrs_of)
    two_groups(used, PhasesScheduler([Phase(0, 1, (0.0, 0.4)), Phase(1, 2, (0.4, 0.1), "cos")])).fit(batches(), 2)
    head = [0.4 * i / 4 for i in range(5)] + [0.1 + 0.3 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)]
    assert [lr for _, lr in used.seen] == pytest.approx(head, abs=1e-15)
    assert [lr for lr, _ in used.seen] == [lr * (1e-4 / 1e-2) for _, lr in used.seen]


def test_ratios_survive_a_resume_where_the_rate_is_0():
    def run(callbacks, saved=None):
        runner = two_groups(*callbacks, PhasesScheduler([Phase(0, 1, (0.0, 0.4)), Phase(1, 2, (0.4, 0.0))]))
        if saved:
            runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=2)
        return runner

    places, gold = saved_at_each_point(run)
    for saved in places:
        assert everything(run([], saved)) == gold
    assert load(places[-1])["optimizer"]["param_groups"][0]["lr"] == 0


def test_another_fit_of_the_callback_keeps_the_ratios():
    used = Watch("on_before_step", lrs_of)
    runner = two_groups(used, PhasesScheduler([Phase(0, 1, (0.4, 0.0))]))
    runner.fit(batches())
    runner.fit(batches())
    assert used.seen[5:] == used.seen[:5]
    runner.state.callbacks[1] = PhasesScheduler([Phase(0, 1, 0.1)])
    with pytest.raises(ValueError, match=r"all 2 parameter groups have a learning rate of 0, so their ratios"):
        runner.fit(batches())


def test_a_group_that_is_added_while_phases_run_is_refused():
    class Add(Callback):
        def on_epoch_begin(self, state):
            if state.epoch == 1:
                state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})

    with pytest.raises(ValueError, match=r"got 1 factors and 2 parameter groups\. Make all groups before fit"):
        make(Add(), PhasesScheduler([Phase(0, 2, 0.1)])).fit(batches(), epochs=2)


def test_phases_fill_a_learning_rate_that_is_a_tensor():
    lr = torch.tensor(0.5)
    runner = make(PhasesScheduler([Phase(0, 1, (0.5, 0.25))]))
    runner.state.optimizer.param_groups[0]["lr"] = lr
    runner.fit(batches())
    assert runner.state.optimizer.param_groups[0]["lr"] is lr
    assert lr == 0.25
