"""Read the training loader epoch by epoch, from a place that can be saved and restored."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from .loaders import has_estimated_length, length, samplers, warn_longer, why_empty
from .random_state import get_random_state, set_random_state
from .workers import READING, open_loader

__all__ = ["Stream"]

_END = object()


class Stream:
    """Yield the training batches that are left of the current epoch.

    An epoch is one pass over the loader, or `steps` batches. With `steps` the loader's iterator is kept from
    epoch to epoch and starts over when it runs out. `set_epoch` of the loader's samplers is called at each pass.

    A place in the data is the state of all random generators at the start of the pass and the number of batches
    taken since. To restore it, the pass is started from those states and as many batches are fetched and dropped. A
    loader with its own `state_dict` (such as torchdata's StatefulDataLoader) restores itself.

    Args:
        loader: any iterable of batches.
        steps: the batches of an epoch, or None for one pass over the loader.
        window: batches per optimizer step. Above 1 the stream has to know the last batch of an epoch before it is
            used. If `len` is missing or an estimate, it prefetches one batch.
        device: the device whose random generator belongs to the place.

    Attributes:
        size (int | None): batches in an epoch, None while unknown.
        batches_done (int): batches yielded in this epoch.
        is_last (bool): whether the batch just yielded is known to be the epoch's last.
        opens_window (bool): whether it is the first of an accumulation window.
        closes_window (bool): whether it is the last of one.
    """

    def __init__(self, loader: Iterable[Any], steps: int | None, *, window: int, device: torch.device) -> None:
        self.loader = loader
        self.steps = steps
        self.window = window
        self.device = device
        self.size = steps or length(loader)
        self.batches_done = 0
        self.is_last = False
        self.opens_window = False
        self.closes_window = False
        self._looks_ahead = window > 1 and steps is None and (self.size is None or has_estimated_length(loader))
        self._samplers = [sampler for sampler in samplers(loader) if hasattr(sampler, "set_epoch")]
        generators = [getattr(holder, "generator", None) for holder in (loader, *samplers(loader))]
        self._generators = [g for g in dict.fromkeys(generators) if isinstance(g, torch.Generator)]
        self._iterator: Iterator[Any] | None = None
        self._ahead: list[Any] = []
        self._passes = 0
        self._taken = 0
        self._pass_start: dict[str, Any] = {}
        self._before_peek: dict[str, Any] = {}
        self._resumed_at: dict[str, Any] | None = None
        self._resumed_generators: list[torch.Tensor] = []
        self._loader_state: Any = None
        self._persists = getattr(loader, "persistent_workers", False)
        self._has_workers = getattr(loader, "_iterator", None) is not None  # left by an earlier pass
        self._is_resumed = False

    @property
    def is_inside_window(self) -> bool:
        """Whether the batch is inside an accumulation window, and not its last."""
        return self.batches_done % self.window != 0 and not self.is_last

    def __iter__(self) -> Iterator[Any]:
        if self.batches_done:  # Resumed inside an epoch: hooks before this drew other random numbers.
            if self._resumed_at is not None:
                set_random_state(self._resumed_at, self.device)
            self._set_generators(self._resumed_generators)
            if self.is_last and (self.steps is not None or not self._taken):
                return
        while self.batches_done != self.steps:
            if self._iterator is None:
                self._iterator = self._reopen() if self._taken else self._open()
                if self._persists:
                    READING.add(self._iterator)
            batch = self._ahead.pop() if self._ahead else next(self._iterator, _END)
            if batch is _END or (self.is_last and self.steps is None):
                if batch is not _END:  # A loader with more batches than its len may never end.
                    warn_longer("train_loader", self.batches_done)
                self._end_pass()
                if self.steps is None:
                    self.is_last = True  # Without a len, it is known only now.
                    break
                continue
            self._taken += 1
            self.opens_window = self.batches_done % self.window == 0
            self.batches_done += 1
            self.is_last = (self._looks_ahead and self._peek() is _END) or self.batches_done == self.size
            self.closes_window = self.is_last or self.batches_done % self.window == 0
            yield batch

    def begin_epoch(self) -> None:
        """Call `set_epoch` of the samplers for a new pass, and update `size`, which may differ in each pass."""
        if self.steps is None and not self._taken:
            self._set_epoch()

    def end_epoch(self) -> None:
        """Make the next batch the first of another epoch."""
        self.batches_done = 0
        self.is_last = False

    def close(self) -> None:
        """Drop the loader's iterator and its workers."""
        if self._persists and self._iterator is not None:
            READING.discard(self._iterator)
        self._iterator = None
        self._ahead.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data."""
        place: dict[str, Any] = {
            "batches_done": self.batches_done,
            "is_last": self.is_last,
            "passes": self._passes,
            "taken": self._taken,
            "generators": self._get_generators(),
            "pass_start": self._pass_start,
            "before_peek": self._before_peek,
            "has_workers": self._has_workers,
        }
        if self._taken and self._restores_itself:
            place["loader"] = self.loader.state_dict()  # type: ignore[attr-defined]
        return place

    def load_state_dict(self, place: dict[str, Any], random_state: dict[str, Any] | None) -> None:
        """Move to a place. The loader is opened there when the next batch is needed.

        Args:
            place: the place that `state_dict` returned.
            random_state: the state that `get_random_state` returned at the same moment. None if it belongs to
                another process.
        """
        self.close()
        self.batches_done, self.is_last = place["batches_done"], place["is_last"]
        self._passes, self._taken = place["passes"], place["taken"]
        self._pass_start, self._before_peek = place["pass_start"], place["before_peek"]
        self._loader_state = place.get("loader")
        self._has_workers, self._is_resumed = place["has_workers"], True
        self._resumed_at = random_state
        self._resumed_generators = place.get("generators", [])
        self._set_generators(self._resumed_generators)
        loader: Any = self.loader
        is_torchdata = type(loader).__module__.startswith("torchdata.")
        if is_torchdata and self._loader_state is not None and loader.num_workers:
            warnings.warn(
                f"{type(self.loader).__name__} restores the order, but not the random numbers of its workers. If the "
                "dataset draws any, the resumed run draws others. Use num_workers=0 or a DataLoader for the same bits",
                stacklevel=6,
            )
        elif self._persists and (self._has_workers or (self.is_last and self.steps is None)):
            warnings.warn(
                "the random numbers of persistent workers cannot be restored. If the dataset draws any, the resumed "
                "run draws others. Use persistent_workers=False for the same bits",
                stacklevel=6,
            )

    @property
    def _restores_itself(self) -> bool:
        # A loader that was read one batch ahead would report a place one batch too far.
        return hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict") and not self._looks_ahead

    def _peek(self) -> Any:
        assert self._iterator is not None
        self._before_peek = get_random_state(self.device)
        self._ahead.append(next(self._iterator, _END))
        return self._ahead[0]

    def _open(self) -> Iterator[Any]:
        if self._is_resumed:
            self._start_workers()
        if self._pass_start:  # The batches of its only window come again.
            self._return_to_pass_start()
        self._pass_start = {"random": get_random_state(self.device), "generators": self._get_generators()}
        if self.steps is not None:  # Otherwise begin_epoch has called it.
            self._set_epoch()
        return open_loader(self.loader)

    def _reopen(self) -> Iterator[Any]:
        now = get_random_state(self.device)
        self._set_epoch()
        if self._loader_state is not None and self._restores_itself:
            self.loader.load_state_dict(self._loader_state)  # type: ignore[attr-defined]
            iterator = open_loader(self.loader)
        else:
            generators = self._get_generators() if self._resumed_generators else []
            if self._is_resumed:
                self._start_workers()
            self._return_to_pass_start()
            iterator = open_loader(self.loader)
            for _ in islice(iterator, self._taken):
                pass
            if self._looks_ahead:
                if self._before_peek:
                    set_random_state(self._before_peek, self.device)
                self._ahead.append(next(iterator, _END))
            self._set_generators(generators)  # A validation with the same generator may have drawn since.
        set_random_state(now, self.device)
        return iterator

    def _return_to_pass_start(self) -> None:
        if "random" in self._pass_start:  # Not if it is that of another process.
            set_random_state(self._pass_start["random"], self.device)
        self._set_generators(self._pass_start["generators"])

    def _start_workers(self) -> None:
        """Start persistent workers that an earlier pass had started, since starting them draws a number."""
        self._is_resumed = False
        if self._persists and self._has_workers and self.loader._iterator is None:  # type: ignore[attr-defined]
            random, generators = get_random_state(self.device), self._get_generators()
            iter(self.loader)
            set_random_state(random, self.device)
            self._set_generators(generators)

    def _end_pass(self) -> None:
        self.close()
        if not self._taken:
            raise ValueError(why_empty(self.loader, "train_loader"))
        if self.window > 1 and self.steps is None and not self.is_last:
            raise ValueError(
                f"expected {self.size} batches, the len of train_loader, got {self._taken}. It ended inside an "
                "accumulation window. Correct its __len__, or pass steps_per_epoch"
            )
        self._passes += 1
        self._has_workers = True
        self._taken = 0
        self._pass_start = {}

    def _set_epoch(self) -> None:
        for sampler in self._samplers:
            sampler.set_epoch(self._passes)
        if self.steps is None:  # A batch sampler may yield another number of batches in each pass.
            self.size = length(self.loader)

    def _get_generators(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set_generators(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=False):
            generator.set_state(state)
