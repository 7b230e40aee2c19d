"""Meet the other machines of a launch, and notice when one of them is gone."""

from __future__ import annotations

import multiprocessing
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from .signals import Signals

__all__ = ["EndedError", "Meeting", "Watch"]

_SILENCE = 15.0
"""Seconds without a heartbeat after which elastic drops a machine: three heartbeats."""

_GRACE = 5.0
"""Seconds after `timeout` in which elastic and the processes may still report a failure themselves."""

_LINGER = 3.0
"""Seconds for which the store outlives a failed run, so that the other machines see its end."""

_STUCK = 90.0
"""Seconds in which elastic has seen the end of a process and stopped the others, unless it waits for ever."""


class EndedError(Exception):
    """A process has ended without an error before its time."""

    def __init__(self, rank: int, exitcode: int) -> None:
        super().__init__(rank, exitcode)
        self.rank, self.exitcode = rank, exitcode


class Watch:
    """Look at signals, processes and the other machines from within elastic, which does none of it in time.

    Attributes:
        signals: what this process has received.
        is_meeting: whether this machine waits for the others, so that there are no processes.
        has_store: whether the store at which the machines meet was reached.
        is_closed: whether a machine has ended the run for all.
    """

    def __init__(self, signals: Signals, nproc: int, nnodes: int, timeout: float) -> None:
        self.signals = signals
        self._nproc = nproc
        self._nnodes = nnodes
        self._timeout = timeout
        self._first_rank = 0
        self.begin()

    def begin(self) -> None:
        """Start to watch another run of elastic."""
        self.is_meeting, self.has_store, self.is_closed = True, False, False
        self._endpoint = ""
        self._hosts: set[str] = set()
        self._gone: set[str] = set()
        self._gone_since: float | None = None
        self._asked: float | None = None
        self._before: set[BaseProcess] = set()
        self._processes: list[BaseProcess] = []
        self._ended_since: float | None = None

    def reach(self, endpoint: str) -> None:
        """Note that the store was reached."""
        self.has_store, self._endpoint = True, endpoint

    def meet(self, meeting: Callable[[], RendezvousInfo]) -> RendezvousInfo:
        """Wait for the other machines, before processes are started."""
        self.is_meeting = True
        self._before, self._processes = set(multiprocessing.active_children()), []
        self.look()
        with self.ask(self._gone_since):
            info = meeting()
        self.is_meeting = False
        self.see([])
        self.look()
        self._first_rank = info.rank * self._nproc
        return info

    def look(self) -> None:
        """Raise what should end the launch: a signal, or a process that has left without a value."""
        if self.signals.received:
            raise SignalException("stopped", signal.Signals(self.signals.received))
        if not self._processes and not self.is_meeting:
            started = set(multiprocessing.active_children()) - self._before
            self._processes = sorted(started, key=_number)
        for number, process in enumerate(self._processes):
            if process.exitcode == 0:
                self.kill()
                raise EndedError(self._first_rank + number, 0)

    @contextmanager
    def ask(self, since: float | None = None) -> Iterator[None]:
        """Measure how long the store or the other machines let this one wait."""
        self._asked = since or time.monotonic()
        try:
            yield
        finally:
            self._asked = None

    def see(self, hosts: list[str], waiting: int = 0) -> None:
        """Note which machines are alive, one name for each."""
        if not hosts or len(hosts) + waiting >= self._nnodes:
            self._hosts, self._gone, self._gone_since = set(hosts), set(), None
        elif self._gone_since is None:
            self._gone, self._gone_since = self._hosts - set(hosts), time.monotonic() - _SILENCE

    def lost(self) -> ConnectionError | None:
        """Return an error when nothing was heard for `timeout` of a machine, or of the store."""
        asked = self._asked
        if self._nnodes == 1 or asked is None or time.monotonic() - asked < self._timeout + _GRACE:
            return None
        names = f"{self._endpoint}, where the machines meet,"
        if self._gone_since is not None:
            names = ", ".join(sorted(self._gone)) or "another machine"
        return ConnectionError(
            f"lost the connection to {names} for {self._timeout:g} s. Check that machine and the network to it, and "
            "start the same program on each machine again"
        )

    def stuck(self) -> EndedError | None:
        """Return an error when elastic does nothing about a process that was killed.

        It waits for ever for one that is killed after its function has returned, just when all may end. After a signal
        it waits on purpose, for those that save their run.
        """
        # Not by the exit codes, since elastic may read them at the same moment.
        has_ended = not self.signals.received and wait([process.sentinel for process in self._processes], 0)
        self._ended_since = (self._ended_since or time.monotonic()) if has_ended else None
        if self._ended_since is None or time.monotonic() - self._ended_since < _STUCK:
            return None
        codes = [process.exitcode or 0 for process in self._processes]
        return EndedError(self._first_rank + codes.index(min(codes)), min(codes)) if min(codes) < 0 else None

    def may_meet_again(self) -> bool:
        """Return whether the store was there, and nobody has ended the run."""
        return self.has_store and not self.is_closed and not self.signals.received

    def has_failed(self) -> bool:
        """Return whether a process of this machine has failed."""
        return any(process.exitcode for process in self._processes)

    def kill(self) -> None:
        """Kill all processes, and wait until they are gone."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_GRACE)


class Meeting(RendezvousHandler):
    """The rendezvous of torch, at which elastic asks several times a second whether machines wait to join.

    Args:
        params: those of torch's, and `watch`, which looks at the processes at each of these times.
    """

    def __init__(self, params: RendezvousParameters) -> None:
        self._watch: Watch = params.get("watch")
        self._nnodes = params.min_nodes
        _wait_for_name(params.endpoint.rpartition(":")[0].strip("[]"), params.get("join_timeout"))
        backend, store = create_backend(params)
        self._inner: Any = create_handler(store, backend, params)
        self._watch.reach(params.endpoint)

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for the other machines."""
        return self._watch.meet(self._inner.next_rendezvous)

    def num_nodes_waiting(self) -> int:
        """Return how many machines wait to join, and look at everything else."""
        self._watch.look()
        with self._watch.ask():
            waiting = int(self._inner.num_nodes_waiting())
            self._watch.is_closed = self._inner.is_closed()
        self._watch.see([node.addr for node in self._inner._state_holder.state.participants], waiting)
        return waiting

    @property
    def use_agent_store(self) -> bool:
        """Return whether the processes share the store of elastic."""
        return bool(self._inner.use_agent_store)

    def get_backend(self) -> str:
        """Return the name under which elastic finds this class."""
        return "fit"

    def is_closed(self) -> bool:
        """Return whether a machine has ended the run for all."""
        with self._watch.ask():
            return bool(self._inner.is_closed())

    def set_closed(self) -> None:
        """End the run for all machines."""
        with self._watch.ask():
            self._inner.set_closed()

    def get_run_id(self) -> str:
        """Return the name of the run."""
        return str(self._inner.get_run_id())

    def shutdown(self) -> bool:
        """End the run for all machines, and leave them the time to see it after a failure."""
        with self._watch.ask():
            is_shut = bool(self._inner.shutdown())
        if self._nnodes > 1 and self._watch.has_failed():
            time.sleep(_LINGER)
        return is_shut


def _number(process: BaseProcess) -> int:
    """Return the number of a process: 2 of SpawnProcess-2, and of SpawnProcess-1:2 in a child of multiprocessing."""
    return int(re.split("[-:]", process.name)[-1])


def _wait_for_name(host: str, seconds: float) -> None:
    """Wait until a host has an address. A pod that is being started does not have one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RendezvousConnectionError(f"found no address of {host!r}: {error.strerror}") from None
            time.sleep(0.2)
