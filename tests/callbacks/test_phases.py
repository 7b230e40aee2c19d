"""Phases of learning rates: what they do to a run equals the formula, written out here."""

import math

import pytest
import torch
from fit_callbacks import LRScheduler, Phase, PhasesScheduler, ReduceLROnPlateau
from fit_core import Callback
from scene import Watch, batches, load, lr_of, make, network
from scheduled import everything, lrs_of, saved_at_each_point, two_groups
from torch import nn


def test_phases_reach_their_ends_exactly():
    used = Watch("on_before_step", lr_of)
    phases = [Phase(0, 1, (0.0, 0.4)), Phase(1, 3, (0.4, 0.1), "cos"), Phase(3, 4, (0.1, 0.0), "poly", power=2)]
    make(used, PhasesScheduler(phases)).fit(batches(), epochs=4)
    warm = [0.4 * i / 4 for i in range(5)]
    cos = [0.1 + 0.3 * (1 + math.cos(math.pi * i / 9)) / 2 for i in range(10)]
    poly = [0.1 * (1 - i / 4) ** 2 for i in range(5)]
    assert used.seen == pytest.approx(warm + cos + poly, abs=1e-15)
    assert [used.seen[i] for i in (0, 4, 5, 14, 15, 19)] == [0.0, 0.4, 0.4, 0.1, 0.1, 0.0]


def test_phases_know_groups_and_accumulation_and_parts_of_an_epoch():
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": [*model[1].parameters(), *model[4].parameters()]}]
    runner = make(PhasesScheduler([Phase(0, 0.5, 0.3), Phase(0.5, 2, (0.3, 0.0))], factors=[1, 0.1]), model=model)
    runner.state.optimizer = torch.optim.SGD(groups, lr=1.0)
    runner.state.accumulate_steps = 2
    used = Watch("on_before_step", lambda state: [group["lr"] for group in state.optimizer.param_groups])
    runner.state.callbacks.append(used)
    runner.fit(batches((4,) * 8), epochs=2)
    expected = [0.3, 0.3, *(0.3 * (1 - i / 5) for i in range(6))]
    assert [lr for lr, _ in used.seen] == pytest.approx(expected)
    assert [lr for _, lr in used.seen] == pytest.approx([lr / 10 for lr in expected])


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (
            [Phase(0, 2, 0.1), Phase(3, 4, 0.1)],
            "expected a phase that starts at 2, got .* with a gap between epochs 2 and 3",
        ),
        ([Phase(0, 2, 0.1), Phase(1, 4, 0.1)], "with an overlap between epochs 1 and 2"),
        ([Phase(1, 2, 0.1)], "a gap between epochs 0 and 1"),
        ([], "expected one phase or more"),
    ],
)
def test_gaps_and_overlaps_are_refused(phases, message):
    with pytest.raises(ValueError, match=message):
        PhasesScheduler(phases)


def test_phases_that_do_not_fit_the_run_are_refused():
    with pytest.raises(ValueError, match="expected phases for 3 epochs, got 2"):
        make(PhasesScheduler([Phase(0, 2, 0.1)])).fit(batches(), epochs=3)
    with pytest.raises(ValueError, match=r"got 2 factors and 1 parameter groups\. Create all groups before fit"):
        make(PhasesScheduler([Phase(0, 2, 0.1)], factors=[1, 2])).fit(batches())
    with pytest.raises(ValueError, match="expected mode to be one of linear, cos, poly, got 'cosine'"):
        Phase(0, 1, 0.1, "cosine")
    with pytest.raises(ValueError, match="expected end to be above 2, got 2"):
        Phase(2, 2, 0.1)


@pytest.mark.parametrize(
    "other",
    [
        PhasesScheduler([Phase(0, 2, 0.2)]),
        LRScheduler(lambda optimizer, steps: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)),
        ReduceLROnPlateau(monitor="train/loss"),
    ],
    ids=lambda other: type(other).__name__,
)
def test_another_callback_that_sets_the_learning_rate_is_refused(other):
    for callbacks in ([other, phases := PhasesScheduler([Phase(0, 2, 0.1)])], [phases, other]):
        with pytest.raises(ValueError, match=f"got PhasesScheduler and {type(other).__name__}. .* remove the other"):
            make(*callbacks).fit(batches())


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
    with pytest.raises(ValueError, match=r"got 0 in all 2 parameter groups, so their ratios"):
        runner.fit(batches())


def test_a_group_that_is_added_while_phases_run_is_refused():
    class Add(Callback):
        def on_epoch_begin(self, state):
            if state.epoch == 1:
                state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})

    with pytest.raises(ValueError, match=r"got 1 factors and 2 parameter groups\. Create all groups before fit"):
        make(Add(), PhasesScheduler([Phase(0, 2, 0.1)])).fit(batches(), epochs=2)


def test_phases_fill_a_learning_rate_that_is_a_tensor():
    lr = torch.tensor(0.5)
    runner = make(PhasesScheduler([Phase(0, 1, (0.5, 0.25))]))
    runner.state.optimizer.param_groups[0]["lr"] = lr
    runner.fit(batches())
    assert runner.state.optimizer.param_groups[0]["lr"] is lr
    assert lr == 0.25
