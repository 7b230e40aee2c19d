"""Split the data of a loader between processes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any, TypeVar

import torch
from fit_core import has_process_group, samplers
from torch import distributed
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, SequentialSampler
from torch.utils.data import _utils as data_utils
from torch.utils.data.distributed import DistributedSampler

from .environment import rank, world_size

__all__ = ["ShardSampler", "shard"]

Loader = TypeVar("Loader", bound="DataLoader[Any]")


class ShardSampler(Sampler[Any]):
    """Yield every `world_size`-th of another sampler's indices, or of a batch sampler's batches.

    On N processes the k-th batches of B samples are together the k-th batch of N * B samples on one process. All
    processes use the order that rank 0 draws, so each has to start a pass when the others do. The order of a
    SequentialSampler is known and not exchanged.

    Args:
        sampler: the indices of all processes, with a `len`.
        pad: True repeats a few, so that every process gets the same number. False yields each once.
        drop_last: with `pad`, drop a few instead of repeating them.
        rank: the rank of this process, 0 to `world_size - 1`. None looks it up when iterated.
        world_size: the number of processes, 1 or more. None looks it up when iterated.

    Examples:
        >>> sampler = ShardSampler(WeightedRandomSampler(weights, 1000), pad=True)
        >>> loader = DataLoader(dataset, batch_size=32, sampler=sampler)
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        *,
        pad: bool,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not hasattr(sampler, "__len__"):
            raise TypeError(f"expected a sampler with a len, got {type(sampler).__name__} without. Add a __len__ to it")
        self.sampler = sampler
        self.pad = pad
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size

    @property
    def generator(self) -> torch.Generator | None:
        """The random generator of the inner sampler, which is saved with the place in the data."""
        return next(
            (
                found
                for inner in (self.sampler, *samplers(self.sampler))
                if (found := getattr(inner, "generator", None))
            ),
            None,
        )

    def set_epoch(self, epoch: int) -> None:
        """Call `set_epoch` of the inner samplers that have it."""
        for inner in (self.sampler, *samplers(self.sampler)):
            if hasattr(inner, "set_epoch"):
                inner.set_epoch(epoch)

    def __len__(self) -> int:
        rank, size = self._place()
        return len(range(rank, self._total(len(self.sampler), size), size))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        rank, size = self._place()
        indices = self._indices()
        return islice(cycle(indices), rank, self._total(len(indices), size), size)

    def _place(self) -> tuple[int, int]:
        return (
            rank() if self.rank is None else self.rank,
            world_size() if self.world_size is None else self.world_size,
        )

    def _total(self, length: int, size: int) -> int:
        """Return the number of indices of all processes together."""
        if not self.pad or length == 0:
            return length
        return (length // size if self.drop_last else -(-length // size)) * size

    def _indices(self) -> list[Any]:
        if not has_process_group() or isinstance(self.sampler, SequentialSampler):
            return list(self.sampler)
        message = [list(self.sampler) if distributed.get_rank() == 0 else None]
        distributed.broadcast_object_list(message, src=0)
        assert message[0] is not None
        return message[0]


def shard(loader: Loader, *, pad: bool | None = None) -> Loader:
    """Return a loader of the part of the data that this process reads, with the same batch size.

    A loader that shuffles, or has a custom sampler, is for training: every process gets the same number of batches, so
    a few samples repeat (with `drop_last` they are dropped). Any other loader is for evaluation: each sample comes
    once, and a process may get fewer batches, or none.

    For an iterable dataset, each process and each of its workers reads everything and keeps its part. The order has to
    be the same everywhere. A dataset that splits itself between workers works too.

    Args:
        loader: a DataLoader. All its options are kept.
        pad: True for the same number of batches, False for each sample once, None for the rule above.

    Returns:
        A loader of the same class, or with one process the loader itself.

    Raises:
        TypeError: it is not a DataLoader, or its sampler does not have a len.
        ValueError: it is sharded already, or has an iterable dataset and `pad` is None.

    Examples:
        >>> runner.fit(shard(train_loader), epochs=5, val_loader=shard(val_loader))
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"expected a torch DataLoader, got {type(loader).__name__}. For your own batches, pass each process its "
            "part: batches[rank()::world_size()]"
        )
    if world_size() == 1:
        return loader
    batches: Any = loader.batch_sampler
    new: dict[str, Any] = {"_iterator": None}  # Persistent workers are not shared.
    if isinstance(loader.dataset, IterableDataset):
        if isinstance(loader.dataset, _IterableShard):
            raise ValueError("expected a loader that is not sharded, got one that shard has returned. Use it as it is")
        if pad is None:
            raise ValueError(
                "expected pad= for an iterable dataset, got None. Pass pad=True for training (every process gets the "
                "same number of samples, a few repeat) or pad=False for evaluation (each sample once)"
            )
        new["dataset"] = _IterableShard(loader.dataset, pad, rank(), world_size())
    elif batches is None and type(loader.sampler) is BatchSampler:
        new["sampler"] = _batches(loader.sampler, pad)
    elif batches is None:
        new["sampler"] = _sampler(loader.sampler, pad)
    elif type(batches) is BatchSampler:
        new["batch_sampler"] = _batches(batches, pad)
        new["sampler"] = new["batch_sampler"].sampler
    else:
        new["batch_sampler"] = _sampler(batches, pad)
    sharded = copy.copy(loader)
    vars(sharded).update(new)  # A DataLoader refuses a new sampler, and another DataLoader might lose an option.
    return sharded


def _batches(batches: Any, pad: bool | None) -> BatchSampler:
    """Return a BatchSampler over the samples of this process."""
    return BatchSampler(
        _sampler(batches.sampler, pad, drop_last=batches.drop_last), batches.batch_size, batches.drop_last
    )


def _sampler(sampler: Any, pad: bool | None, *, drop_last: bool = False) -> ShardSampler:
    for inner in (sampler, *samplers(sampler)):
        if isinstance(inner, (DistributedSampler, ShardSampler)):
            raise ValueError(
                f"expected a loader that is not sharded, got one with a {type(inner).__name__}. Use it without shard, "
                "or create it with another sampler"
            )
    if pad is None:
        pad = not isinstance(getattr(sampler, "sampler", sampler), SequentialSampler)
    return ShardSampler(sampler, pad=pad, drop_last=drop_last)


class _IterableShard(IterableDataset[Any]):
    """Yield one of every `size` samples, split between the workers of this process."""

    def __init__(self, dataset: IterableDataset[Any], pad: bool, rank: int, size: int) -> None:
        self.dataset = dataset
        self.pad = pad
        self.rank = rank
        self.size = size

    def __len__(self) -> int:
        length = len(self.dataset)  # type: ignore[arg-type]  # TypeError says that it has none
        return -(-length // self.size) if self.pad else len(range(self.rank, length, self.size))

    def __iter__(self) -> Iterator[Any]:
        worker = data_utils.worker.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        samples = _whole(self.dataset)
        rounds = iter(lambda: list(islice(samples, self.size)), [])
        for dealt in islice(rounds, number, None, workers):
            if self.pad:
                yield dealt[self.rank % len(dealt)]
            elif self.rank < len(dealt):
                yield dealt[self.rank]


def _whole(dataset: IterableDataset[Any]) -> Iterator[Any]:
    """Yield all samples, even if the dataset splits itself between workers. It sees none while it is read."""
    workers = data_utils.worker
    info = workers._worker_info
    samples: Iterator[Any] | None = None
    while True:
        workers._worker_info = None
        try:
            samples = iter(dataset) if samples is None else samples
            sample = next(samples)
        except StopIteration:
            return
        finally:
            workers._worker_info = info
        yield sample
