"""LRScheduler compares a scheduler with the length of the run: numbers of epochs that would be counted in steps."""

import warnings

import pytest
from fit_callbacks import LRScheduler
from scene import Watch, batches, make
from torch.optim import lr_scheduler

EPOCHS = 4  # of 5 steps


def run(make_scheduler, interval="step", epochs=EPOCHS, sizes=(4,) * 5):
    steps = Watch("on_batch_end", lambda state: state.batch_idx)
    runner = make(steps)
    runner.state.callbacks.append(LRScheduler(make_scheduler(runner.state.optimizer), interval))
    try:
        runner.fit(batches(sizes), epochs)
    finally:
        run.steps = len(steps.seen)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda o: lr_scheduler.StepLR(o, 2), r"StepLR\(step_size=2\) is stepped after each of the 20 optimizer steps"),
        (lambda o: lr_scheduler.MultiStepLR(o, [2, 3]), r"MultiStepLR\(milestones=3\) .* of the 4 epochs. For epochs"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 4), r"\(T_max=4\) .* LRScheduler\(scheduler, interval='epoch'\)"),
        (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2), r"\(T_0=2\) is stepped"),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.3), r"\(gamma=0.3\) .* ends at 3e-11 of the learning rate"),
        (
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.LinearLR(o, total_iters=1), lr_scheduler.CosineAnnealingLR(o, 3)], [1]
            ),
            r"CosineAnnealingLR\(T_max=3\) is stepped",
        ),
    ],
)
def test_numbers_of_epochs_that_are_counted_in_steps_are_a_warning(scheduler, message):
    with pytest.warns(UserWarning, match=message):
        run(scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(scheduler, "epoch")


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: lr_scheduler.StepLR(o, 10),
        lambda o: lr_scheduler.MultiStepLR(o, [2, 15]),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
        lambda o: lr_scheduler.LinearLR(o, total_iters=3),
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0),
    ],
)
def test_schedules_in_steps_are_not_a_warning(scheduler):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(scheduler)


def test_an_epoch_of_one_batch_is_not_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(lambda o: lr_scheduler.CosineAnnealingLR(o, 6), epochs=6, sizes=(4,))


@pytest.mark.parametrize(("total", "interval"), [(19, "step"), (3, "epoch")])
def test_a_one_cycle_that_ends_before_the_run_is_refused_before_the_first_step(total, interval):
    with pytest.raises(ValueError, match=rf"got OneCycleLR that ends after {total}. Pass a function: LRScheduler\("):
        run(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=total), interval)
    assert run.steps == 0
    run(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=total + 1), interval)


def test_a_function_that_does_not_take_the_steps_is_refused():
    with pytest.raises(TypeError, match=r"expected a function of \(optimizer, steps\), got one of \(optimizer\)"):
        LRScheduler(lambda optimizer: lr_scheduler.StepLR(optimizer, 2))
