"""Loaders of every kind: with and without len, endless, kept across epochs, empty."""

import multiprocessing

import numpy as np
import pytest
import torch
from fit_core import Callback, Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


class Seen(Callback):
    """Notes which batches came, by their first number, and what the loop said of them."""

    def __init__(self):
        self.train, self.val, self.sizes = [], [], []

    def on_epoch_begin(self, state):
        self.train.append([])

    def on_loader_begin(self, state):
        self.sizes.append(state.num_batches)

    def on_batch_end(self, state):
        (self.train[-1] if state.is_train else self.val).append(int(state.input[0, 0]))


def numbered(count):
    return [(torch.full((2, 1), float(index)), torch.zeros(2, 1)) for index in range(count)]


def runner(**options):
    model = nn.Linear(1, 1)
    seen = Seen()
    return Runner(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), (), [seen], **options), seen


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return (pair for pair in numbered(self.count))


def test_lists_and_dataloaders_have_a_size():
    run, seen = runner()
    run.fit(numbered(3), val_loader=DataLoader(TensorDataset(torch.zeros(5, 1), torch.zeros(5, 1)), batch_size=2))
    assert seen.sizes == [3, 3]
    assert seen.train == [[0, 1, 2]]


def test_an_iterable_dataset_has_none():
    run, seen = runner()
    run.fit(DataLoader(Stream(3), batch_size=None), epochs=2)
    assert seen.sizes == [None, None]
    assert seen.train == [[0, 1, 2], [0, 1, 2]]


def test_a_generator_is_read_once():
    run, seen = runner()
    run.fit((pair for pair in numbered(3)), val_loader=(pair for pair in numbered(2)))
    assert (seen.train, seen.val) == ([[0, 1, 2]], [0, 1])


def test_steps_per_epoch_keeps_the_iterator_and_drops_nothing():
    run, seen = runner()
    run.fit(numbered(5), epochs=4, steps_per_epoch=3)
    assert seen.train == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]
    assert seen.sizes == [3] * 4


def test_steps_per_epoch_fetches_not_one_batch_too_many():
    fetched = []

    def endless():
        for index in range(1000):
            fetched.append(index)
            yield numbered(1)[0]

    run, _ = runner()
    run.fit(endless(), epochs=2, steps_per_epoch=3)
    assert fetched == list(range(6))


def test_a_window_closes_at_the_end_of_an_epoch_of_steps():
    steps = []

    class Steps(Callback):
        def on_before_step(self, state):
            steps.append((state.epoch, state.batch_idx))

    run, _ = runner(accumulate_steps=2)
    run.state.callbacks.append(Steps())
    run.fit(numbered(5), epochs=2, steps_per_epoch=3)
    assert steps == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_val_steps_and_validate_every():
    run, seen = runner()
    history = run.fit(numbered(1), epochs=5, val_loader=numbered(4), val_steps=2, validate_every=2)
    assert seen.val == [0, 1, 0, 1]
    assert ["val/loss" in row for row in history] == [False, True, False, True, False]
    assert run.evaluate(numbered(9), steps=3).keys() == {"val/loss"}
    assert run.predict(numbered(9), steps=3).shape == (6, 1)


def test_set_epoch_is_called_at_each_pass():
    class Sampler(torch.utils.data.SequentialSampler):
        epochs = ()

        def set_epoch(self, epoch):
            self.epochs = (*self.epochs, epoch)

    dataset = TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1))
    sampler = Sampler(dataset)
    run, _ = runner()
    run.fit(DataLoader(dataset, sampler=sampler, batch_size=2), epochs=3, steps_per_epoch=3)
    assert sampler.epochs == (0, 1, 2, 3, 4)
    sampler.epochs = ()
    run.fit(DataLoader(dataset, batch_sampler=torch.utils.data.BatchSampler(sampler, 2, False)), epochs=2)
    assert sampler.epochs == (0, 1)


def test_a_loader_of_the_old_protocol_works():
    class Items:
        def __getitem__(self, index):
            return numbered(3)[index]

    run, seen = runner()
    run.fit(Items(), epochs=2)
    assert seen.train == [[0, 1, 2]] * 2


def test_total_steps_counts_windows():
    totals = []

    class Total(Callback):
        def on_begin(self, state):
            totals.append(state.total_steps)

    run, _ = runner(accumulate_steps=2)
    run.state.callbacks.append(Total())
    run.fit(numbered(5), epochs=3)
    run.fit(DataLoader(Stream(9), batch_size=None), epochs=2, steps_per_epoch=3)
    assert totals == [9, 4]


def test_a_schedule_over_a_loader_without_len_says_to_pass_steps_per_epoch():
    class Schedule(Callback):
        def on_begin(self, state):
            torch.optim.lr_scheduler.OneCycleLR(state.optimizer, 0.1, total_steps=state.total_steps)

    run, _ = runner()
    run.state.callbacks.append(Schedule())
    with pytest.raises(ValueError, match="the training DataLoader has no len: pass steps_per_epoch="):
        run.fit(DataLoader(Stream(3), batch_size=None))


def small_loader(samples, **options):
    return DataLoader(TensorDataset(torch.zeros(samples, 1), torch.zeros(samples, 1)), **options)


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
    with pytest.raises(ValueError, match="yields no batches: its dataset is empty"):
        run.fit(DataLoader(Stream(0), batch_size=None))


def test_a_generator_for_several_epochs_is_refused():
    run, _ = runner()
    with pytest.raises(ValueError, match="train_loader is a generator, which can be read only once, and 2 passes"):
        run.fit((pair for pair in numbered(3)), epochs=2)
    with pytest.raises(ValueError, match=r"val_loader is a list_iterator, .*\(val_steps for validation\)"):
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
    with pytest.raises(ValueError, match=r"len\(train_loader\) is 5, but it ended after 3 batches"):
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
            r"got TensorDataset, a dataset\. Wrap it: DataLoader\(dataset, batch_size=32, shuffle=True\)",
        ),
        (Samples(), r"got Samples, a dataset\. Wrap it: DataLoader\(dataset, batch_size=32\), or .*batch_size=None\)"),
        (torch.zeros(4, 1), r"got Tensor\. Wrap them: DataLoader\(TensorDataset\(inputs, targets\), batch_size=32"),
        (np.zeros((4, 1)), r"got ndarray\. Make tensors of your arrays, torch\.as_tensor\(array\)\. Wrap them: Data"),
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
        with pytest.raises(TypeError, match=f"{name} must be a DataLoader or another iterable of batches, {message}"):
            call(loader)
    assert seen.train == []


def test_epochs_may_be_positional():
    run, _ = runner()
    assert [row["epoch"] for row in run.fit(numbered(1), 3)] == [1, 2, 3]


class Longer:
    """Yields more than its len says, and may never end."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(numbered(5)) if self.count == 5 else (pair for _ in iter(int, 1) for pair in numbered(1))


@pytest.mark.parametrize("count", [5, "endless"])
@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 2}])
def test_a_pass_is_no_longer_than_the_len_of_the_loader(count, options):
    run, seen = runner(**options)
    with pytest.warns(UserWarning, match=r"len\(train_loader\) is 3, but it yields more batches"):
        run.fit(Longer(count), 2)
    assert [len(epoch) for epoch in seen.train] == [3, 3]
    assert run.state.global_step == (4 if options else 6)
    with pytest.warns(UserWarning, match=r"len\(loader\) is 3, but it yields more batches"):
        assert run.predict(Longer(count)).shape == (6, 1)


class Estimate(IterableDataset):
    """Says that it has ten batches, and has another number."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return 10

    def __iter__(self):
        return iter(numbered(self.count))


def test_the_length_of_an_iterable_dataset_is_an_estimate():
    run, seen = runner(accumulate_steps=2)
    run.fit(DataLoader(Estimate(5), batch_size=None), 2)
    assert seen.train == [[0, 1, 2, 3, 4]] * 2
    assert run.state.global_step == 6


def test_the_number_of_batches_may_change_with_the_epoch():
    class Growing(torch.utils.data.Sampler):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 2 + self.epoch

        def __iter__(self):
            return iter([[0, 1]] * len(self))

    dataset = TensorDataset(torch.zeros(2, 1), torch.zeros(2, 1))
    run, seen = runner(accumulate_steps=2)
    run.fit(DataLoader(dataset, batch_sampler=Growing()), 3)
    assert [len(epoch) for epoch in seen.train] == seen.sizes == [2, 3, 4]
    assert run.state.global_step == 1 + 2 + 2


def test_workers_are_gone_after_an_exception():
    class Fail(Callback):
        def on_batch_end(self, state):
            raise RuntimeError("stop")

    run, _ = runner()
    run.state.callbacks.append(Fail())
    loader = small_loader(8, batch_size=2, num_workers=1)
    with pytest.raises(RuntimeError, match="stop") as caught:
        run.fit(loader)
    del caught
    assert not multiprocessing.active_children()
