"""Loaders of every kind: with and without len, endless, kept across epochs."""

import multiprocessing

import pytest
import torch
from fit_core import Callback
from numbered import Stream, numbered, runner, small_loader
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


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


@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize(("hook", "steps"), [("on_epoch_end", 2), ("on_batch_end", None)])
def test_an_evaluation_of_the_training_loader_leaves_the_place_in_it_alone(persistent_workers, hook, steps):
    numbers = torch.arange(6.0).view(6, 1)
    loader = DataLoader(
        TensorDataset(numbers, numbers), batch_size=1, num_workers=1, persistent_workers=persistent_workers
    )
    seen = []

    class Evaluate(Callback):
        def on_batch_begin(self, state):
            if state.is_train:
                seen.append(state.input.item())

    def evaluate(self, state):
        if state.loader_name == "train" and state.batch_idx == 1:
            run.evaluate(loader, name="again")

    setattr(Evaluate, hook, evaluate)
    run, _ = runner()
    run.state.callbacks.append(Evaluate())
    run.fit(loader, epochs=3 if steps else 1, steps_per_epoch=steps)
    assert seen == [0, 1, 2, 3, 4, 5]
