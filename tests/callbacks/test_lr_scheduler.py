"""LRScheduler steps torch's schedulers, and continues them after a resume."""

import pytest
import torch
from fit_callbacks import (
    LRScheduler,
)
from fit_core import Callback
from scene import Watch, batches, lr_of, make, network
from torch.optim import lr_scheduler


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_scheduler_is_stepped_after_each_optimizer_step(accumulate_steps):
    used = Watch("on_before_step", lr_of)
    runner = make(used, accumulate_steps=accumulate_steps)
    runner.state.callbacks.append(LRScheduler(lr_scheduler.ExponentialLR(runner.state.optimizer, 0.5)))
    runner.fit(batches(), epochs=2)
    assert used.seen == [0.1 * 0.5**step for step in range(2 * -(-5 // accumulate_steps))]


def test_a_scheduler_is_stepped_after_each_epoch():
    used = Watch("on_epoch_begin", lr_of)
    runner = make(used)
    runner.state.callbacks.append(LRScheduler(lr_scheduler.StepLR(runner.state.optimizer, 2), interval="epoch"))
    runner.fit(batches(), epochs=5)
    assert used.seen == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_a_scheduler_that_is_made_is_told_the_steps_of_the_run():
    used = Watch("on_before_step", lr_of)

    def one_cycle(optimizer, steps):
        return lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=steps + 1)

    make(used, LRScheduler(one_cycle), accumulate_steps=2).fit(batches(), epochs=3)
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)
    by_hand, expected = lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=10), []
    for _ in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        by_hand.step()
    assert used.seen == expected


def test_a_schedule_that_needs_the_total_says_what_to_pass():
    schedule = LRScheduler(lambda optimizer, steps: lr_scheduler.LinearLR(optimizer, total_iters=steps))
    with pytest.raises(ValueError, match=r"without. Pass steps_per_epoch"):
        make(schedule).fit(iter(batches()))


def test_a_scheduler_is_not_stepped_when_the_scaler_skipped():
    class Overflow(Callback):
        def on_after_backward(self, state):
            if state.batch_idx in (1, 2):
                next(state.model.parameters()).grad.fill_(torch.inf)

    runner = make(Overflow(), use_fp16=True)
    scheduler = lr_scheduler.ExponentialLR(runner.state.optimizer, 0.5)
    runner.state.callbacks.append(LRScheduler(scheduler))
    runner.fit(batches(), epochs=2)
    assert scheduler.last_epoch == 2 * 5 - 2 * 2


def test_schedulers_that_do_not_fit_are_refused():
    other = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="another optimizer than the Runner's"):
        make(LRScheduler(lr_scheduler.StepLR(other, 1))).fit(batches())
    with pytest.raises(ValueError, match="expected interval to be 'step' or 'epoch', got 'batch'"):
        LRScheduler(lr_scheduler.StepLR(other, 1), interval="batch")
    with pytest.raises(ValueError, match=r"Use fit_callbacks.ReduceLROnPlateau"):
        LRScheduler(lr_scheduler.ReduceLROnPlateau(other))


def test_another_fit_after_a_schedule_that_ended_at_0_is_warned_about():
    used = Watch("on_before_step", lr_of)
    runner = make(used, LRScheduler(lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps)))
    runner.fit(batches(), epochs=2)
    first = used.seen[:]
    with pytest.warns(UserWarning, match=r'the learning rate is 0, .* set param_groups\[0\]\["lr"\] of the optimizer'):
        runner.fit(batches(), epochs=2)
    used.seen.clear()
    runner.state.optimizer.param_groups[0]["lr"] = 0.1
    runner.fit(batches(), epochs=2)
    assert used.seen == pytest.approx(first)


@pytest.mark.filterwarnings("error:the learning rate is 0")
def test_a_schedule_that_sets_the_rate_itself_is_not_warned_about():
    runner = make(LRScheduler(lambda optimizer, steps: lr_scheduler.OneCycleLR(optimizer, 0.4, steps + 1)), lr=0.0)
    runner.fit(batches())
