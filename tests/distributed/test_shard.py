"""Which samples each process reads: every one once, or equally many each, with all options of the loader kept."""

import itertools

import pytest
import torch
from fit_distributed import ShardSampler, launch, rank, shard
from forked import forked
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler

pytestmark = pytest.mark.timeout(180)


def on_ranks(monkeypatch, world, function):
    """Return the result of `function()` on each rank, in turn, without a group."""
    monkeypatch.setenv("WORLD_SIZE", str(world))
    results = []
    for number in range(world):
        monkeypatch.setenv("RANK", str(number))
        results.append(function())
    return results


def read(loader):
    return [batch.tolist() for batch in loader]


def flat(shards):
    return sorted(itertools.chain.from_iterable(itertools.chain.from_iterable(shards)))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 17, 103])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("world", [2, 3])
def test_an_evaluation_shard_gives_each_sample_once(monkeypatch, count, batch, world):
    loader = DataLoader(torch.arange(count), batch_size=batch)
    shards = on_ranks(monkeypatch, world, lambda: read(shard(loader)))
    assert flat(shards) == list(range(count))
    lengths = on_ranks(monkeypatch, world, lambda: len(shard(loader)))
    assert lengths == [len(part) for part in shards]


@pytest.mark.parametrize("count", [1, 2, 5, 17, 103])
@pytest.mark.parametrize("world", [2, 3])
def test_a_training_shard_gives_each_process_equally_many(monkeypatch, count, world):
    def one():
        torch.manual_seed(0)
        return read(shard(DataLoader(torch.arange(count), batch_size=8, shuffle=True)))

    shards = on_ranks(monkeypatch, world, one)
    assert len({tuple(map(len, part)) for part in shards}) == 1
    seen = flat(shards)
    assert set(seen) == set(range(count))
    assert len(seen) - count < world
    assert len(seen) % world == 0


def test_the_batches_of_all_processes_together_are_those_of_one(monkeypatch):
    def loader(size):
        torch.manual_seed(3)
        return DataLoader(torch.arange(44), batch_size=size, shuffle=True)

    alone = read(loader(8))
    first, second = on_ranks(monkeypatch, 2, lambda: read(shard(loader(4))))
    assert [sorted(part + other) for part, other in zip(first, second, strict=True)] == [sorted(part) for part in alone]


def test_drop_last_drops_what_one_process_would_drop(monkeypatch):
    for count in range(1, 40):

        def loader(size, count=count):
            torch.manual_seed(3)
            return DataLoader(torch.arange(count), batch_size=size, shuffle=True, drop_last=True)

        shards = on_ranks(monkeypatch, 2, lambda: read(shard(loader(4))))
        assert flat(shards) == flat([read(loader(8))])


def test_pad_overrides_the_rule(monkeypatch):
    evaluation = DataLoader(torch.arange(5), batch_size=2)
    assert flat(on_ranks(monkeypatch, 2, lambda: read(shard(evaluation, pad=True)))) == [0, 0, 1, 2, 3, 4]
    training = DataLoader(torch.arange(5), batch_size=2, shuffle=True)
    lengths = on_ranks(monkeypatch, 2, lambda: (len(shard(training, pad=False)), len(shard(training).sampler)))
    assert lengths == [(2, 3), (1, 3)]


def collate(samples):
    return torch.stack(samples) * 10


def seed_worker(number):
    pass


class MyLoader(DataLoader):
    label = None


def test_every_option_of_the_loader_is_kept(monkeypatch):
    options = {
        "batch_size": 3,
        "num_workers": 1,
        "collate_fn": collate,
        "pin_memory": True,
        "drop_last": True,
        "timeout": 77,
        "worker_init_fn": seed_worker,
        "multiprocessing_context": "spawn",
        "generator": torch.Generator().manual_seed(7),
        "prefetch_factor": 5,
        "persistent_workers": True,
    }
    loader = MyLoader(torch.arange(20), shuffle=True, **options)
    loader.label = "mine"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    sharded = shard(loader)
    assert type(sharded) is MyLoader
    same = {name for name in vars(loader) if vars(loader)[name] is vars(sharded)[name]}
    assert set(vars(loader)) - same == {"sampler", "batch_sampler"}
    assert {name: getattr(sharded, name) for name in options if name != "multiprocessing_context"} == {
        name: value for name, value in options.items() if name != "multiprocessing_context"
    }
    assert sharded.multiprocessing_context.get_start_method() == "spawn"
    assert isinstance(loader.sampler, RandomSampler)  # The loader itself is as it was.


def test_samplers_and_batch_samplers_of_the_users_own(monkeypatch):
    weighted = DataLoader(torch.arange(6), batch_size=2, sampler=WeightedRandomSampler([1.0] * 6, 5))
    assert on_ranks(monkeypatch, 2, lambda: [len(batch) for batch in read(shard(weighted))]) == [[2, 1], [2, 1]]

    unbatched = DataLoader(torch.arange(5), batch_size=None)
    assert on_ranks(monkeypatch, 2, lambda: read(shard(unbatched))) == [[0, 2, 4], [1, 3]]

    class Buckets:  # batches of unequal size, of no class of torch's
        def __len__(self):
            return 3

        def __iter__(self):
            return iter([[0, 1, 2], [3], [4, 5]])

    buckets = DataLoader(torch.arange(6), batch_sampler=Buckets())
    assert on_ranks(monkeypatch, 2, lambda: read(shard(buckets))) == [[[0, 1, 2], [4, 5]], [[3], [0, 1, 2]]]
    assert on_ranks(monkeypatch, 2, lambda: read(shard(buckets, pad=False)))[1] == [[3]]

    explicit = DataLoader(torch.arange(6), batch_sampler=BatchSampler(SequentialSampler(range(6)), 2, False))
    assert on_ranks(monkeypatch, 2, lambda: read(shard(explicit))) == [[[0, 2], [4]], [[1, 3], [5]]]


@pytest.mark.parametrize("order", [RandomSampler, SequentialSampler])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("count", [3, 19, 40])
def test_a_batch_sampler_as_sampler_is_sharded_like_the_usual_loader(monkeypatch, order, drop_last, count):
    def batched():
        torch.manual_seed(3)
        sampler = BatchSampler(order(range(count)), 4, drop_last)
        sharded = shard(DataLoader(torch.arange(count), batch_size=None, sampler=sampler))
        batches = read(sharded)
        assert len(sharded) == len(batches)
        return batches

    def usual():
        torch.manual_seed(3)
        return read(shard(DataLoader(torch.arange(count), 4, shuffle=order is RandomSampler, drop_last=drop_last)))

    assert on_ranks(monkeypatch, 2, batched) == on_ranks(monkeypatch, 2, usual)


def test_the_number_of_the_pass_and_the_generator_reach_and_come_from_the_inner_sampler():
    class Epochs(RandomSampler):
        def set_epoch(self, epoch):
            self.epoch = epoch

    inner = Epochs(range(4), generator=torch.Generator())
    sampler = ShardSampler(inner, pad=True, rank=0, world_size=2)
    sampler.set_epoch(3)
    assert inner.epoch == 3
    assert sampler.generator is inner.generator
    assert ShardSampler(BatchSampler(inner, 2, False), pad=True).generator is inner.generator
    assert ShardSampler(SequentialSampler(range(4)), pad=False).generator is None
    ShardSampler(BatchSampler(inner, 2, False), pad=True).set_epoch(4)
    assert inner.epoch == 4


def test_one_process_keeps_its_loader():
    loader = DataLoader(torch.arange(4), shuffle=True)
    assert shard(loader) is loader
    with pytest.raises(TypeError, match="expected a torch DataLoader, got list"):
        shard([torch.zeros(3)])


def test_what_cannot_be_sharded_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    class NoLen:
        def __iter__(self):
            return iter([[0]])

    with pytest.raises(TypeError, match=r"expected a sampler with a len, got NoLen without. Add a __len__"):
        shard(DataLoader(torch.arange(4), batch_sampler=NoLen()))
    theirs = DataLoader(torch.arange(4), sampler=DistributedSampler(range(4), 2, 0))
    with pytest.raises(ValueError, match="a loader that is not sharded, got one with a DistributedSampler"):
        shard(theirs)

    class Buckets(BatchSampler):
        pass

    for kind in (BatchSampler, Buckets):
        inside = kind(DistributedSampler(range(4), 2, 0), 2, False)
        for options in ({"batch_sampler": inside}, {"sampler": inside, "batch_size": None}):
            with pytest.raises(ValueError, match="a loader that is not sharded, got one with a DistributedSampler"):
                shard(DataLoader(torch.arange(4), **options))
    with pytest.raises(ValueError, match="a loader that is not sharded, got one with a ShardSampler"):
        shard(shard(DataLoader(torch.arange(4))))
    with pytest.raises(ValueError, match="Pass pad=True for training"):
        shard(DataLoader(Whole(4)))
    for pad in (True, False, None):
        with pytest.raises(ValueError, match="a loader that is not sharded, got one that shard has returned"):
            shard(shard(DataLoader(Whole(4)), pad=False), pad=pad)


class Whole(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


class Split(Whole):
    """One that gives each worker a part, as torch's documentation advises."""

    def __iter__(self):
        info = get_worker_info()
        return iter(range(info.id, self.count, info.num_workers) if info else range(self.count))


@pytest.mark.parametrize("kind", [Whole, Split])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 11])
def test_iterable_datasets_are_sharded_by_rank_and_worker(monkeypatch, kind, workers, count):
    loader = DataLoader(kind(count), batch_size=2, num_workers=workers)
    shards = on_ranks(monkeypatch, 2, lambda: read(shard(loader, pad=False)))
    assert flat(shards) == list(range(count))
    shards = on_ranks(monkeypatch, 2, lambda: read(shard(loader, pad=True)))
    assert set(flat(shards)) == set(range(count))
    assert len({tuple(map(len, part)) for part in shards}) == 1


def test_an_iterable_dataset_with_a_len_keeps_a_len(monkeypatch):
    class Sized(Whole):
        def __len__(self):
            return self.count

    for pad, lengths in ((True, [6, 6]), (False, [6, 5])):
        loader = DataLoader(Sized(11), batch_size=1)
        assert on_ranks(monkeypatch, 2, lambda: len(shard(loader, pad=pad))) == lengths  # noqa: B023
    with pytest.raises(TypeError):
        len(shard(DataLoader(Whole(11)), pad=True))


def orders(steps):
    torch.manual_seed(rank())  # each has random numbers of its own
    plain = shard(DataLoader(torch.arange(10), batch_size=2, shuffle=True))
    seeded = DataLoader(torch.arange(10), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(5))
    workers = shard(DataLoader(torch.arange(10), batch_size=2, shuffle=True, num_workers=1))
    sampler = BatchSampler(RandomSampler(range(10)), 2, drop_last=False)
    batched = shard(DataLoader(torch.arange(10), batch_size=None, sampler=sampler))
    return [read(loader) for loader in (plain, plain, shard(seeded), workers, batched)]


def test_all_processes_go_by_the_order_of_rank_0():
    with forked():
        first, second = launch(orders, 3, nproc=2, backend="gloo", timeout=60)
    for part, other in zip(first, second, strict=True):
        assert flat([part, other]) == list(range(10))
    assert first[0] != first[1]
