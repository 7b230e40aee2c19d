"""Hooks are called in order, and misspelt ones are refused. Runs, states and callbacks print what they are."""

import pytest
from fit_core import Callback
from recorder import Fails, StopAt, batches, runner


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
    with pytest.raises(TypeError, match=r"Typo.on_batch_ended to be a hook, .* Did you mean on_batch_end\?"):
        type("Typo", (Callback,), {"on_batch_ended": lambda self, state: None})


async def asynchronous(self, state):
    pass


def generator(self, state):
    yield


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (lambda self, epoch, logs=None: None, r"to take \(self, state\), got \(self, epoch, logs=None\)\. Every"),
        (lambda self: None, r"to take \(self, state\), got \(self\)"),
        (lambda self, trainer, module: None, r"got \(self, trainer, module\)"),
        (lambda self, *, state: None, r"got \(self, \*, state\)"),
        (asynchronous, "a plain method, got an async function or a generator. Write def"),
        (generator, "a plain method, got an async function or a generator"),
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
