"""The lifecycle, told as the list of hooks that a callback sees. Read this first."""

import contextlib
from unittest.mock import ANY

import pytest
import torch
from fit_core import HOOKS, Callback, Runner
from torch import nn


def note(hook):
    def method(self, state):
        where = "" if hook in ("on_begin", "on_end") else f" {state.epoch}"
        if hook.startswith(("on_batch", "on_after", "on_before", "on_loader")):
            where += " train" if state.is_train else " val"
        if hook.startswith(("on_batch", "on_after", "on_before")):
            where += f" {state.batch_idx}"
        self.events.append(hook.removeprefix("on_") + where)

    return method


Recorder = type("Recorder", (Callback,), {hook: note(hook) for hook in HOOKS})


def batches(count):
    return [(torch.randn(2, 3), torch.randn(2, 1)) for _ in range(count)]


def runner(*others, **options):
    model = nn.Linear(3, 1)
    recorder = Recorder()
    recorder.events = []
    made = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), (), [recorder, *others], **options)
    return made, recorder.events


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


class StopAt(Callback):
    def __init__(self, hook, epoch, is_train=True):
        self.hook, self.epoch, self.is_train = hook, epoch, is_train

    def on_batch_end(self, state):
        state.should_stop |= (self.hook, self.epoch, self.is_train) == ("batch", state.epoch, state.is_train)

    def on_epoch_end(self, state):
        state.should_stop |= (self.hook, self.epoch) == ("epoch", state.epoch)


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


class Fails(Callback):
    def __init__(self, *hooks, error=ZeroDivisionError):
        self.error = error
        for hook in hooks:
            setattr(self, hook, self.fail)

    def fail(self, state):
        raise self.error("of a callback")


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


def test_callbacks_are_called_in_the_order_of_their_list():
    order = []

    class Named(Callback):
        def __init__(self, name):
            self.name = name

        def on_batch_begin(self, state):
            order.append(self.name)

        def on_end(self, state):
            order.append(self.name)

    run, _ = runner(Named("a"), Named("b"))
    run.fit(batches(1))
    assert order == ["a", "b", "a", "b"]


def test_on_checkpoint_comes_when_every_callback_has_seen_the_batch():
    order = []

    class First(Callback):
        def on_checkpoint(self, state):
            order.append("checkpoint")

    class Second(Callback):
        def on_batch_end(self, state):
            order.append("batch_end")

        def on_epoch_end(self, state):
            order.append("epoch_end")

    run, _ = runner(First(), Second())
    run.fit(batches(1))
    assert order == ["batch_end", "checkpoint", "epoch_end", "checkpoint"]


def test_a_hook_assigned_to_an_object_is_called():
    seen = []
    callback = Callback()
    callback.on_batch_end = lambda state: seen.append(state.batch_idx)
    run, _ = runner(callback)
    run.fit(batches(2))
    assert seen == [0, 1]


def test_printing_shows_hooks_and_callbacks_in_order():
    run, _ = runner(StopAt("epoch", 9), Fails())
    assert str(run) == "\n".join(
        [
            "Runner(Linear, SGD, MSELoss) on cpu, metrics: none",
            "on_begin                    Recorder",
            "  on_epoch_begin            Recorder",
            "    on_loader_begin         Recorder",
            "      on_batch_begin        Recorder",
            "        on_after_backward   Recorder",
            "        on_before_step      Recorder",
            "      on_batch_end          Recorder, StopAt",
            "      on_checkpoint         Recorder",
            "    on_loader_end           Recorder",
            "  on_epoch_end              Recorder, StopAt",
            "  on_checkpoint             Recorder",
            "on_end                      Recorder",
        ]
    )


def test_a_misspelt_hook_is_refused_when_the_class_is_made():
    with pytest.raises(
        TypeError, match=r"Typo.on_batch_ended is not a hook. Did you mean on_batch_end\? The hooks are on_"
    ):
        type("Typo", (Callback,), {"on_batch_ended": lambda self, state: None})


async def asynchronous(self, state):
    pass


def generator(self, state):
    yield


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (lambda self, epoch, logs=None: None, r"takes \(self, epoch, logs=None\), expected \(self, state\)\. Every"),
        (lambda self: None, r"takes \(self\), expected \(self, state\)"),
        (lambda self, trainer, module: None, r"takes \(self, trainer, module\), expected"),
        (lambda self, *, state: None, r"takes \(self, \*, state\), expected"),
        (asynchronous, "an async function or a generator, which would never run: write a plain method"),
        (generator, "an async function or a generator, which would never run"),
    ],
)
def test_a_hook_with_other_parameters_is_refused_when_the_class_is_made(hook, message):
    with pytest.raises(TypeError, match=f"Keras.on_epoch_end .*{message}"):
        type("Keras", (Callback,), {"on_epoch_end": hook})


def test_a_hook_in_a_decorator_without_wraps_is_taken():
    type("Decorated", (Callback,), {"on_epoch_end": lambda *args, **kwargs: None})


def test_a_state_and_its_callbacks_show_what_they_are():
    run, _ = runner(StopAt("epoch", 9))
    run.fit(batches(2), 3)
    assert repr(run.state).startswith(
        "RunnerState(epoch 3 of 3, batch 1 of 2 in train, 6 steps, 12 samples, on cpu, logs:"
    )
    assert repr(run.state.callbacks[1]) == "StopAt(hook='epoch', epoch=9, is_train=True)"
    assert repr(run) == str(run)


def test_a_misspelt_state_field_raises():
    run, _ = runner()
    with pytest.raises(AttributeError, match="should_stpo"):
        run.state.should_stpo = True
    with pytest.raises(AttributeError, match="gobal_step"):
        _ = run.state.gobal_step
