"""A BatchSampler as sampler with `batch_size=None`: the dataset is indexed once per batch, by a list."""

import pytest
import torch
from classifier import Schedule, fingerprint, make
from fit_core import Callback
from fit_core.batch import SampleCounter
from numbered import runner
from scene import Snapshots, load
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset

INDEX = torch.arange(64.0)[:, None]
DATA = TensorDataset(INDEX, torch.zeros(64, 1))


def batched(size, generator=None, dataset=DATA, drop_last=False, **options):
    sampler = BatchSampler(RandomSampler(dataset, generator=generator), size, drop_last)
    return DataLoader(dataset, batch_size=None, sampler=sampler, **options)


class Inputs(Callback):
    """Collects the inputs of all training batches."""

    def __init__(self, stop_after=None):
        self.seen = []
        self.stop_after = stop_after

    def on_batch_end(self, state):
        self.seen.append(state.input.flatten().tolist())
        state.should_stop = len(self.seen) == self.stop_after


def test_it_yields_the_batches_of_the_usual_loader():
    def train(loader):
        torch.manual_seed(1)
        run, _ = runner()
        run.state.callbacks[:] = [inputs := Inputs()]
        run.fit(loader, epochs=2)
        return inputs.seen

    usual = train(DataLoader(DATA, batch_size=10, shuffle=True, drop_last=True))
    assert train(batched(10, drop_last=True)) == usual
    part = Subset(DATA, range(0, 64, 2))
    assert train(batched(5, dataset=part)) == train(DataLoader(part, batch_size=5, shuffle=True))


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_after_any_batch_and_resumed_ends_with_the_same_bits(own_generator, steps, workers):
    def run(callbacks, saved=None):
        run = make([*callbacks, Schedule()])
        generator = torch.Generator().manual_seed(5) if own_generator else None
        data = TensorDataset(torch.randn(22, 4, generator=torch.Generator().manual_seed(1)), torch.arange(22) % 3)
        if saved is not None:
            torch.rand(17)
            run.state.load_state_dict(load(saved))
        run.fit(batched(5, generator, data, num_workers=workers), epochs=3, steps_per_epoch=steps)
        return fingerprint(run)

    save = Snapshots()
    gold = run([save])
    for saved in save.saved if workers == 0 else save.saved[1::5]:
        assert run([], saved) == gold


def test_its_batch_size_decides_whether_a_list_is_of_samples_or_of_fields():
    counter = SampleCounter(batched(5))
    assert counter.count([torch.zeros(5, 1)] * 2, [torch.zeros(5, 1)] * 2) == 5
    assert counter.count([torch.zeros(3, 1)] * 2, [torch.zeros(3, 1)] * 2) == 3
    assert SampleCounter(batched(2)).count([torch.zeros(5, 1)] * 2, [torch.zeros(5, 1)] * 2) == 2


def test_set_epoch_reaches_the_sampler_inside():
    class Sampler(torch.utils.data.SequentialSampler):
        epochs = ()

        def set_epoch(self, epoch):
            self.epochs = (*self.epochs, epoch)

    run, _ = runner()
    sampler = Sampler(DATA)
    run.fit(DataLoader(DATA, batch_size=None, sampler=BatchSampler(sampler, 16, False)), epochs=3)
    assert sampler.epochs == (0, 1, 2)


@pytest.mark.parametrize("steps", [None, 100])
@pytest.mark.parametrize("kind", ["sampler", "batch_sampler"])
def test_resumed_with_another_batch_size_has_each_sample_once(steps, kind):
    def loader(size):
        batches = BatchSampler(RandomSampler(DATA), size, False)
        return DataLoader(DATA, **({"batch_size": None, "sampler": batches} if kind == "sampler" else {kind: batches}))

    def run(loader, saved=None, stop_after=None, match=None):
        run, _ = runner()
        snapshots, inputs = Snapshots(), Inputs(stop_after)
        run.state.callbacks[:] = [inputs, snapshots]
        torch.manual_seed(2 if saved is None else 3)
        if saved is not None:
            run.state.load_state_dict(load(saved))
            with pytest.warns(UserWarning, match="batch_size 8 -> 4"):
                run.fit(loader, steps_per_epoch=steps)
        else:
            run.fit(loader, steps_per_epoch=steps)
        return [int(index) for batch in inputs.seen for index in batch], snapshots.saved

    first, saved = run(loader(8), stop_after=3)
    rest, _ = run(loader(4), saved[-1])
    assert len(first) == 24
    assert sorted(first + rest[:40]) == list(range(64))


def test_what_leaves_no_batch_and_batches_of_batches_are_named():
    run, seen = runner()
    with pytest.raises(ValueError, match="its 64 samples do not fill one batch of 100, and drop_last=True drops them"):
        run.fit(batched(100, drop_last=True))
    both = BatchSampler(RandomSampler(DATA), 8, False)
    for call in (run.fit, run.evaluate, run.predict):
        with pytest.raises(
            ValueError, match=r"got batch_size=1\. Write DataLoader\(dataset, batch_size=None, sampler="
        ):
            call(DataLoader(DATA, sampler=both))
    assert seen.train == []
    run.fit(DataLoader(DATA, sampler=both, collate_fn=lambda batches: batches[0]))
    assert len(seen.train[0]) == 8
