"""Loaders that are empty, can be read only once, or are not loaders."""

import numpy as np
import pytest
import torch
from fit_core import Callback
from numbered import Stream, numbered, runner, small_loader
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


def test_a_schedule_over_a_loader_without_len_says_to_pass_steps_per_epoch():
    class Schedule(Callback):
        def on_begin(self, state):
            torch.optim.lr_scheduler.OneCycleLR(state.optimizer, 0.1, total_steps=state.total_steps)

    run, _ = runner()
    run.state.callbacks.append(Schedule())
    with pytest.raises(ValueError, match=r"got a DataLoader without. Pass steps_per_epoch="):
        run.fit(DataLoader(Stream(3), batch_size=None))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (small_loader(3, batch_size=8, drop_last=True), "its 3 samples do not fill one batch of 8, and drop_last=True"),
        ([], r"train_loader \(list\) yields no batches"),
    ],
)
def test_an_empty_training_loader_is_refused_before_the_first_step(loader, message):
    run, seen = runner()
    with pytest.raises(ValueError, match=message):
        run.fit(loader)
    assert seen.train == []


def test_empty_loaders_are_refused_wherever_they_are():
    run, seen = runner()
    with pytest.raises(ValueError, match=r"val_loader \(list\) yields no batches"):
        run.fit(numbered(1), val_loader=[])
    assert seen.train == []
    for call in (run.evaluate, run.predict):
        with pytest.raises(ValueError, match=r"loader \(list\) yields no batches"):
            call([])
        with pytest.raises(ValueError, match="which can be read only once and has ended"):
            call(iter([]))
    with pytest.raises(ValueError, match=r"train_loader \(list\) yields no batches: it is empty"):
        run.fit([])
    with pytest.raises(ValueError, match="yields no batches: its dataset is empty"):
        run.fit(DataLoader(Stream(0), batch_size=None))


def test_a_generator_for_several_epochs_is_refused():
    run, _ = runner()
    with pytest.raises(ValueError, match="train_loader to be an iterable for 2 passes, got a generator"):
        run.fit((pair for pair in numbered(3)), epochs=2)
    with pytest.raises(ValueError, match=r"got a list_iterator, .*\(val_steps for validation\)"):
        run.fit(numbered(3), epochs=2, val_loader=iter(numbered(3)))


def test_a_generator_that_ends_before_its_epochs_says_so():
    run, _ = runner()
    with pytest.raises(ValueError, match="train_loader is a generator, which can be read only once and has ended"):
        run.fit((pair for pair in numbered(5)), epochs=2, steps_per_epoch=3)


def test_a_len_that_lies_is_named_when_it_would_lose_a_window():
    class Lies:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter(numbered(3))

    run, _ = runner(accumulate_steps=2)
    with pytest.raises(ValueError, match=r"expected 5 batches, the len of train_loader, got 3"):
        run.fit(Lies())
    runner()[0].fit(Lies())  # without accumulation nothing is lost


class Samples(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (7, "got int"),
        ("mnist", "got str"),
        ({"x": torch.zeros(2)}, "got dict"),
        (
            TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1)),
            r"got TensorDataset, a dataset\. Wrap it: DataLoader\(dataset, batch_size=32",
        ),
        (Samples(), r"got Samples, a dataset\. Wrap it: DataLoader\(dataset, batch_size=32\), or .*batch_size=None\)"),
        (torch.zeros(4, 1), r"got Tensor\. Wrap them: DataLoader\(TensorDataset\(inputs, targets\), batch_size=32"),
        (np.zeros((4, 1)), r"got ndarray\. Convert the arrays to tensors, torch\.as_tensor\(array\)\. Wrap them: Data"),
        ((torch.zeros(4, 1), torch.zeros(4)), r"got Tensor and Tensor\. Wrap them: DataLoader\(TensorDataset"),
        ((np.zeros((4, 1)), np.zeros(4)), r"got ndarray and ndarray\. Convert the arrays to tensors"),
    ],
)
def test_what_is_not_a_loader_is_refused_with_the_line_to_type(loader, message):
    run, seen = runner()
    for call, name in (
        (run.fit, "train_loader"),
        (lambda value: run.fit(numbered(1), val_loader=value), "val_loader"),
        (run.evaluate, "loader"),
        (run.predict, "loader"),
    ):
        with pytest.raises(
            TypeError, match=f"expected {name} to be a DataLoader or another iterable of batches, {message}"
        ):
            call(loader)
    assert seen.train == []


def test_two_batches_in_a_tuple_are_a_loader():
    run, _ = runner()
    assert len(run.predict(torch.zeros(8, 1).split(4))) == 8


def test_only_a_training_loader_is_told_to_shuffle():
    run, _ = runner()
    dataset = TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(TypeError, match=r"batch_size=32, shuffle=True\)$"):
        run.fit(dataset)
    for call in (lambda: run.fit(numbered(1), val_loader=dataset), lambda: run.predict(dataset)):
        with pytest.raises(TypeError, match=r"batch_size=32\)$"):
            call()
