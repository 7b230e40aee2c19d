"""An exception of the user's code gets a note, and leaves nothing behind."""

import contextlib
import gc
import logging
import sys
import weakref

import pytest
import torch
from fit_core import Callback, Runner
from fit_core.notes import describe
from torch import nn

needs_notes = pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes since Python 3.11")


def batches(width=4):
    return [(torch.zeros(2, 4), torch.zeros(2, 1)), (torch.zeros(2, width), torch.zeros(2, 1))]


def make(*callbacks, metrics=(), criterion=None):
    model = nn.Linear(4, 1)
    return Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion or nn.MSELoss(), metrics, callbacks)


def notes(call, kind=RuntimeError):
    with pytest.raises(kind) as caught:
        call()
    return getattr(caught.value, "__notes__", [])


@needs_notes
def test_an_error_of_the_model_names_epoch_batch_and_shapes():
    assert notes(lambda: make().fit(batches(5), 2)) == [
        "fit: raised in epoch 1, train batch 2, on cpu:\n  input: float32(2, 5) on cpu\n  target: float32(2, 1) on cpu"
    ]


@needs_notes
def test_an_error_in_evaluation_and_in_a_metric_is_placed_too():
    def broken(output, target):
        raise RuntimeError("broken")

    expected = "\n  input: float32(2, 4) on cpu\n  target: float32(2, 1) on cpu\n  output: float32(2, 1) on cpu"
    runner = make(metrics=[broken])
    assert notes(lambda: runner.evaluate(batches(), name="test")) == [
        f"fit: raised in epoch 1, test batch 1, by the metric broken, on cpu:{expected}"
    ]
    place = "fit: raised in epoch 1, train batch 1, by the metric broken"
    assert notes(lambda: runner.fit(batches())) == [f"{place}, on cpu:{expected}"]


@needs_notes
def test_a_batch_that_is_not_a_pair_is_shown_and_not_the_one_before():
    broken = [batches()[0], {"x": torch.zeros(3)}]
    place = "train batch 2:\n  batch: dict of 1 {x: float32(3,) on cpu}"
    assert notes(lambda: make().fit(broken), TypeError) == [f"fit: raised in epoch 1, {place}"]
    place = "val batch 2:\n  batch: dict of 1 {x: float32(3,) on cpu}"
    assert notes(lambda: make().fit(batches(), val_loader=broken), TypeError) == [f"fit: raised in epoch 1, {place}"]


@needs_notes
@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_loader_begin", "on_loader_end", "on_epoch_end"])
def test_an_error_of_a_hook_between_batches_names_the_hook_and_no_batch(hook):
    class Fails(Callback):
        pass

    def fails(self, state):
        if state.epoch == 1:
            raise RuntimeError("broken")

    setattr(Fails, hook, fails)
    assert notes(lambda: make(Fails()).fit(batches(), 2)) == [f"fit: raised in epoch 2, by Fails.{hook}"]


@needs_notes
@pytest.mark.parametrize("val_loader", [None, batches()])
def test_an_error_of_a_checkpoint_names_the_epoch_that_it_follows(val_loader):
    class Fails(Callback):
        def on_checkpoint(self, state):
            if state.history:
                raise RuntimeError("broken")

    expected = ["fit: raised in epoch 1, by Fails.on_checkpoint"]
    assert notes(lambda: make(Fails()).fit(batches(), 2, val_loader=val_loader)) == expected


@needs_notes
def test_an_error_at_the_end_of_a_loader_names_no_batch():
    class Broken:
        name = "broken"

        def reset(self):
            pass

        def update(self, output, target):
            pass

        def compute(self):
            raise RuntimeError("broken")

    assert notes(lambda: make(metrics=[Broken()]).fit(batches())) == [
        "fit: raised at the end of epoch 1, train, by the metric broken"
    ]
    runner = make()
    assert notes(lambda: runner.fit(batches(), val_loader=iter([])), ValueError) == [
        "fit: raised at the end of epoch 1, val"
    ]


@needs_notes
def test_an_error_before_the_first_loader_is_not_placed_in_the_last_run():
    class Fails(Callback):
        def on_begin(self, state):
            if hasattr(self, "is_second"):
                raise RuntimeError("broken")
            self.is_second = True

    runner = make(Fails())
    runner.fit(batches(), val_loader=batches())
    assert notes(lambda: runner.fit(batches())) == []
    runner.state.model.register_buffer("elsewhere", torch.zeros(1, device="meta"))
    assert notes(lambda: runner.evaluate(batches()), ValueError) == []


@needs_notes
def test_an_error_of_the_dataset_is_not_blamed_on_the_batch_before():
    def broken():
        yield batches()[0]
        raise RuntimeError("broken file")

    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index == 3:
                raise RuntimeError("broken file")
            return torch.zeros(4), torch.tensor(0)

    loader = torch.utils.data.DataLoader(Broken())
    for call, place in (
        (lambda: make().fit(broken()), "train, after batch 1"),
        (lambda: make().evaluate(broken()), "val, after batch 1"),
        (lambda: make().fit(loader), "train, after batch 3"),
    ):
        assert notes(call) == [f"fit: raised while the loader fetched a batch: epoch 1, {place}"]


@needs_notes
def test_keyboard_interrupt_gets_no_note():
    class Interrupt(Callback):
        def on_batch_end(self, state):
            raise KeyboardInterrupt

    assert notes(lambda: make(Interrupt()).fit(batches()), KeyboardInterrupt) == []


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="logged on Python 3.10 only")
def test_on_python_3_10_the_note_is_logged(caplog):
    with caplog.at_level(logging.ERROR, "fit_core"), pytest.raises(RuntimeError):
        make().fit(batches(5))
    assert "raised in epoch 1, train batch 2" in caplog.text


def test_nested_batches_are_described():
    batch = {"image": [torch.zeros(3, 4), torch.zeros(3, 5)], "name": "a"}
    assert describe(batch) == "dict of 2 {image: list of 2 [float32(3, 4) on cpu, float32(3, 5) on cpu], name: str}"
    assert describe([1] * 9) == "list of 9 [int, int, int, int, ...]"


def test_an_exception_that_was_caught_keeps_no_graph_alive():
    kept = []

    class Fail(Callback):
        def on_batch_end(self, state):
            kept.append(weakref.ref(state.output))
            raise RuntimeError("stop")

    runner = make(Fail())
    gc.collect()
    gc.disable()
    try:
        for call in (runner.fit, runner.evaluate):
            with contextlib.suppress(RuntimeError):
                call(batches())
        assert [output() for output in kept] == [None, None]
    finally:
        gc.enable()
