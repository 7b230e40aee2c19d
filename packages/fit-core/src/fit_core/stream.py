"""Where the training batches come from: a loader, read epoch after epoch, whose place can be saved and found again."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch

__all__ = ["Stream", "get_rng", "length", "process_group", "set_rng", "why_empty"]

_END = object()


def get_rng(device: torch.device) -> dict[str, Any]:
    """The state of every global random generator: Python's, NumPy's if it is imported, torch's, the accelerator's."""
    rng: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        name, keys, *rest = numpy.random.get_state()
        rng["numpy"] = (name, keys.tolist(), *rest)  # arrays do not pass torch.load(weights_only=True)
    if device.type != "cpu":
        rng["accelerator"] = torch.get_device_module(device).get_rng_state(device)
    return rng


def set_rng(rng: dict[str, Any], device: torch.device) -> None:
    """Set every global random generator to what :func:`get_rng` found."""
    random.setstate(rng["python"])
    torch.set_rng_state(rng["torch"])
    if "numpy" in rng and (numpy := sys.modules.get("numpy")):
        numpy.random.set_state(rng["numpy"])
    if "accelerator" in rng and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(rng["accelerator"], device)


def length(loader: Iterable[Any], at_most: int | None = None) -> int | None:
    """``len(loader)``, or ``at_most`` if that is less; None where nothing is known."""
    try:
        size = len(loader)  # type: ignore[arg-type]  # a loader may have a len; TypeError says that it has not
    except TypeError:
        return at_most
    return size if at_most is None else min(size, at_most)


def why_empty(loader: Any, name: str) -> str:
    """A sentence on a loader that gives no batch, with the sizes that explain it."""
    samples = length(getattr(loader, "dataset", ()))
    size = getattr(loader, "batch_size", None)
    if samples and size and getattr(loader, "drop_last", False):
        return (
            f"{name} gives no batch: its {samples} samples do not fill one batch of {size} and drop_last=True "
            "drops them. Use a smaller batch_size or drop_last=False"
        )
    if isinstance(loader, Iterator):
        return (
            f"{name} is a {type(loader).__name__}, which can be read only once, and has ended: "
            "pass a list, a DataLoader, or an object whose __iter__ starts anew"
        )
    return f"{name} ({type(loader).__name__}) gives no batch: its dataset is empty"


def process_group() -> tuple[int, int]:
    """``(rank, world_size)``: of the process group where there is one, else of the launcher's environment."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Stream:
    """The training batches of a run. Iterating gives the batches that are left of the current epoch.

    An epoch is one pass over the loader, or ``steps`` batches: then the loader's iterator is kept from epoch to
    epoch and starts over when it runs out. ``set_epoch`` of the loader's samplers is called at each pass.

    A place in the data is the state of all random generators at the start of the pass and the number of batches
    taken since. To find it again the pass is started anew from those states and as many batches are fetched and
    dropped; a loader with a ``state_dict`` of its own (such as torchdata's StatefulDataLoader) restores itself.

    Args:
        loader: any iterable of batches.
        steps: how many batches make an epoch; None for one pass over the loader.
        know_last: find out which batch is an epoch's last before it is given. Where the loader has no len, this
            fetches one batch ahead.
        device: the device whose random generator belongs to the place.

    Attributes:
        size (int | None): batches in an epoch, None while unknown.
        steps, device, loader: as given.
        skipping: wraps the batches that are fetched and dropped, or None.
        step (int): batches given in this epoch.
        last (bool): whether the batch just given is known to be the epoch's last.
    """

    def __init__(
        self, loader: Iterable[Any], steps: int | None, *, know_last: bool = False, device: torch.device
    ) -> None:
        self.loader = loader
        self.size = steps or length(loader)
        self.step = 0
        self.last = False
        self.steps = steps
        self.device = device
        self.skipping: Callable[[Iterable[Any], int], Iterable[Any]] | None = None
        self._know_last = know_last
        self._look_ahead = know_last and self.size is None
        self._iterator: Iterator[Any] | None = None
        self._ahead: list[Any] = []
        self._passes = 0
        self._taken = 0
        self._start: dict[str, Any] = {}
        self._rng: dict[str, Any] = {}
        self._loader_state: Any = None

    def __iter__(self) -> Iterator[Any]:
        if self.step:  # Resumed inside an epoch: hooks on the way here drew numbers that the first run did not draw.
            set_rng(self._rng, self.device)
            if self.last and self.steps is None:
                if self._taken:
                    self._end_pass()
                return
        while self.step != self.steps:
            if self._iterator is None:
                self._iterator = self._reopen() if self._taken else self._open()
            batch = self._ahead.pop() if self._ahead else next(self._iterator, _END)
            if batch is _END:
                self._end_pass()
                if self.steps is None:
                    break
                continue
            self._taken += 1
            self.step += 1
            self.last = self._peek() is _END if self._look_ahead else self.step == self.size
            yield batch

    def end_epoch(self) -> None:
        """The epoch is complete: the next batch is the first of another."""
        self.step = 0
        self.last = False

    def close(self) -> None:
        """Let go of the loader's iterator and with it of its workers."""
        self._iterator = None
        self._ahead.clear()

    def state_dict(self) -> dict[str, Any]:
        """The place in the data."""
        place: dict[str, Any] = {"step": self.step, "last": self.last, "passes": self._passes, "taken": self._taken}
        place |= {"generators": self._get_generators(), "start": self._start}
        if self._taken and self._restores_itself:
            place["loader"] = self.loader.state_dict()  # type: ignore[attr-defined]
        return place

    def load_state_dict(self, place: dict[str, Any], rng: dict[str, Any]) -> None:
        """Go to a place; the loader is opened there when the next batch is asked for.

        Args:
            place: what :meth:`state_dict` gave.
            rng: what :func:`get_rng` gave at the same moment.
        """
        self.close()
        self.step, self.last = place["step"], place["last"]
        self._passes, self._taken = place["passes"], place["taken"]
        self._start, self._loader_state = place["start"], place.get("loader")
        self._rng = rng
        self._set_generators(place["generators"])

    @property
    def _restores_itself(self) -> bool:
        # A loader that was read one batch ahead would say a place one batch too far.
        return hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict") and not self._look_ahead

    def _peek(self) -> Any:
        assert self._iterator is not None
        self._start["before_peek"] = get_rng(self.device)
        self._ahead.append(next(self._iterator, _END))
        return self._ahead[0]

    def _open(self) -> Iterator[Any]:
        self._start = {
            "rng": get_rng(self.device),
            "generators": self._get_generators(),
        }
        self._set_epoch()
        return iter(self.loader)

    def _reopen(self) -> Iterator[Any]:
        now = get_rng(self.device)
        self._set_epoch()
        if self._loader_state is not None and self._restores_itself:
            self.loader.load_state_dict(self._loader_state)  # type: ignore[attr-defined]
            iterator = iter(self.loader)
        else:
            set_rng(self._start["rng"], self.device)
            self._set_generators(self._start["generators"])
            iterator = iter(self.loader)
            dropped: Iterable[Any] = islice(iterator, self._taken)
            for _ in self.skipping(dropped, self._taken) if self.skipping else dropped:
                pass
            if self._look_ahead:
                set_rng(self._start["before_peek"], self.device)
                self._ahead.append(next(iterator, _END))
        set_rng(now, self.device)
        return iterator

    def _end_pass(self) -> None:
        self.close()
        if not self._taken:
            raise ValueError(why_empty(self.loader, "train_loader"))
        if self._know_last and self.steps is None and not self.last:
            raise ValueError(
                f"len(train_loader) is {self.size}, but it ended after {self._taken} batches, inside an accumulation "
                "window: correct its __len__, or pass steps_per_epoch"
            )
        self._passes += 1
        self._taken = 0
        self._start = {}

    def _samplers(self) -> list[Any]:
        batch_sampler = getattr(self.loader, "batch_sampler", None)
        return [getattr(self.loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]

    def _set_epoch(self) -> None:
        for sampler in dict.fromkeys(self._samplers()):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self._passes)

    def _generators(self) -> list[torch.Generator]:
        found = [getattr(holder, "generator", None) for holder in (self.loader, *self._samplers())]
        return list(dict.fromkeys(generator for generator in found if isinstance(generator, torch.Generator)))

    def _get_generators(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _set_generators(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self._generators(), states, strict=False):
            generator.set_state(state)
