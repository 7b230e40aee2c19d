"""The lifecycle, as the list of hooks that a callback sees. Read this first."""

import contextlib
from unittest.mock import ANY

import pytest
from fit_core import Callback
from recorder import Fails, Recorder, StopAt, batches, runner


def test_two_epochs_with_validation():
    run, events = runner()
    run.fit(batches(2), epochs=2, val_loader=batches(1))
    assert events == [
        "begin",
        "epoch_begin 0",
        "loader_begin 0 train",
        "batch_begin 0 train 0",
        "after_backward 0 train 0",
        "before_step 0 train 0",
        "batch_end 0 train 0",
        "checkpoint 0",
        "batch_begin 0 train 1",
        "after_backward 0 train 1",
        "before_step 0 train 1",
        "batch_end 0 train 1",
        "checkpoint 0",
        "loader_end 0 train",
        "loader_begin 0 val",
        "batch_begin 0 val 0",
        "batch_end 0 val 0",
        "loader_end 0 val",
        "epoch_end 0",
        "checkpoint 1",
        "epoch_begin 1",
        "loader_begin 1 train",
        "batch_begin 1 train 0",
        "after_backward 1 train 0",
        "before_step 1 train 0",
        "batch_end 1 train 0",
        "checkpoint 1",
        "batch_begin 1 train 1",
        "after_backward 1 train 1",
        "before_step 1 train 1",
        "batch_end 1 train 1",
        "checkpoint 1",
        "loader_end 1 train",
        "loader_begin 1 val",
        "batch_begin 1 val 0",
        "batch_end 1 val 0",
        "loader_end 1 val",
        "epoch_end 1",
        "checkpoint 2",
        "end",
    ]


def test_accumulation_steps_at_the_end_of_a_window_and_of_the_epoch():
    run, events = runner(accumulate_steps=2)
    run.fit(batches(3))
    training = [event for event in events if event.startswith(("after", "before"))]
    assert training == [
        "after_backward 0 train 0",
        "after_backward 0 train 1",
        "before_step 0 train 1",
        "after_backward 0 train 2",
        "before_step 0 train 2",
    ]
    assert run.state.global_step == 2


def test_should_stop_in_a_training_batch_leaves_the_epoch_incomplete():
    run, events = runner(StopAt("batch", 1))
    history = run.fit(batches(2), epochs=3, val_loader=batches(1))
    assert events[events.index("epoch_begin 1") :] == [
        "epoch_begin 1",
        "loader_begin 1 train",
        "batch_begin 1 train 0",
        "after_backward 1 train 0",
        "before_step 1 train 0",
        "batch_end 1 train 0",
        "checkpoint 1",
        "end",
    ]
    assert history == [*run.state.history, {"epoch": 2, "train/loss": ANY, "lr": 0.1, "stopped_after_batch": 1}]


def test_should_stop_in_validation_ends_the_run_at_once():
    run, events = runner(StopAt("batch", 0, is_train=False))
    run.fit(batches(1), epochs=3, val_loader=batches(2))
    assert events[-4:] == ["loader_begin 0 val", "batch_begin 0 val 0", "batch_end 0 val 0", "end"]


def test_should_stop_at_the_end_of_an_epoch_ends_the_run_there():
    run, events = runner(StopAt("epoch", 0))
    history = run.fit(batches(1), epochs=3)
    assert events[-3:] == ["epoch_end 0", "checkpoint 1", "end"]
    assert len(history) == 1


def test_a_run_after_one_that_was_stopped_is_not_stopped():
    run, _ = runner(StopAt("epoch", 0))
    run.fit(batches(1), epochs=3)
    run.state.callbacks.pop()
    assert len(run.fit(batches(1), epochs=3)) == 3


class Status(Callback):
    """Notes what becomes of a run."""

    def __init__(self):
        self.seen = []

    def on_epoch_begin(self, state):
        self.seen.append(state.status)

    def on_end(self, state):
        self.seen.append(state.status)


@pytest.mark.parametrize(
    ("callback", "status"),
    [
        (lambda: StopAt("epoch", 5), "finished"),
        (lambda: StopAt("epoch", 0), "finished"),
        (lambda: StopAt("batch", 0), "interrupted"),
        (lambda: StopAt("batch", 0, is_train=False), "interrupted"),
        (lambda: Fails("on_batch_end"), "failed"),
        (lambda: Fails("on_batch_end", error=KeyboardInterrupt), "interrupted"),
    ],
)
def test_on_end_knows_what_became_of_the_run(callback, status):
    seen = Status()
    run, _ = runner(callback(), seen)
    with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt):
        run.fit(batches(2), val_loader=batches(1))
    assert seen.seen == ["running", status]


def test_an_exception_reaches_the_user_after_on_end():
    errors = []
    watch = Callback()
    watch.on_end = lambda state: errors.append(type(state.error))
    run, events = runner(Fails("on_batch_end"), watch)
    with pytest.raises(ZeroDivisionError, match="of a callback"):
        run.fit(batches(2), epochs=2)
    assert events == [
        "begin",
        "epoch_begin 0",
        "loader_begin 0 train",
        "batch_begin 0 train 0",
        "after_backward 0 train 0",
        "before_step 0 train 0",
        "batch_end 0 train 0",
        "end",
    ]
    assert errors == [ZeroDivisionError]


def test_an_exception_in_on_begin_ends_the_run_too():
    run, events = runner(Fails("on_begin"))
    with pytest.raises(ZeroDivisionError):
        run.fit(batches(2))
    assert events == ["begin", "end"]


def test_every_on_end_is_called_whatever_another_raises():
    recorder = Recorder()
    recorder.events = []
    run, events = runner(Fails("on_end"), recorder)
    with pytest.raises(ZeroDivisionError):
        run.fit(batches(1))
    assert events[-1] == recorder.events[-1] == "end"
    assert run.state.error is None


def test_errors_at_the_end_do_not_hide_the_one_that_ended_the_run():
    class FailsInABatch(Callback):
        def on_batch_end(self, state):
            raise KeyError("batch")

    class FailsToo(Callback):
        def on_end(self, state):
            raise RuntimeError("too")

    run, _ = runner(FailsInABatch(), Fails("on_end"), FailsToo(), Callback())
    with pytest.raises(RuntimeError, match="too") as caught:
        run.fit(batches(1))
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert isinstance(caught.value.__context__.__context__, KeyError)


def test_keyboard_interrupt_is_not_swallowed():
    class Interrupt(Callback):
        def on_batch_begin(self, state):
            raise KeyboardInterrupt

    run, events = runner(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        run.fit(batches(1))
    assert events[-1] == "end"


def test_evaluate_and_predict_alone_call_loader_and_batch_hooks():
    run, events = runner()
    expected = [
        "loader_begin 0 val",
        "batch_begin 0 val 0",
        "batch_end 0 val 0",
        "batch_begin 0 val 1",
        "batch_end 0 val 1",
        "loader_end 0 val",
    ]
    run.evaluate(batches(2))
    assert events == expected
    events.clear()
    run.predict(batches(2))
    assert events == expected
