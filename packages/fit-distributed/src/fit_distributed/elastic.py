"""Run a job in new processes with torch elastic, the engine of torchrun, and watch them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from . import worker
from .reports import explain
from .signals import Signals

__all__ = ["run"]

_NOISY = ("torch.distributed.elastic", "torch.multiprocessing")


def run(job: worker.Job, nproc: int, nnodes: int, rdzv: str | None, max_restarts: int) -> list[bytes]:
    """Run a job on ``nproc`` new processes here and on those of the other machines. Return the results."""
    with (
        tempfile.TemporaryDirectory(prefix="fit_distributed_") as folder,
        _keep_environment(),
        _without_stdin(),
        Signals() as signals,
    ):
        os.environ[worker.LAUNCHER] = str(os.getpid())
        # By default each process would use as many threads as cores, and all would be slow.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // nproc)))
        # Seconds to save a run after a signal. Then elastic kills the remaining processes.
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(job.timeout) + 1))
        if nnodes > 1:  # One store per attempt: a shared one mixes up machines with different numbers of attempts.
            os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        watch = _Watch(signals, nproc)
        seconds = max(1, int(job.timeout))
        config = LaunchConfig(
            min_nodes=nnodes,
            max_nodes=nnodes,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex if rdzv is None else "fit",
            rdzv_backend="fit",
            rdzv_endpoint=rdzv or "localhost:0",
            rdzv_configs={"join_timeout": seconds, "read_timeout": seconds, "watch": watch},
            local_addr="localhost" if (rdzv or "localhost").startswith(("localhost:", "127.0.0.1:")) else None,
            max_restarts=max_restarts,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(folder),
        )
        rendezvous_handler_registry.register("fit", _Meeting)
        sys.stdout.flush()  # Earlier output comes before that of the processes.
        returned, error = _in_thread(lambda: elastic_launch(config, worker.work)(job), watch)
        failed: BaseException | None = error
        if isinstance(error, ChildFailedError):
            rank, failure = error.get_first_failure()
            failed = explain(Path(folder), rank, failure.exitcode, nproc * nnodes)
        elif isinstance(error, _EndedError):
            failed = explain(Path(folder), error.rank, 0, nproc * nnodes)
        elif isinstance(error, RendezvousError):
            failed = ConnectionError(
                f"the {nnodes} machines did not meet at {config.rdzv_endpoint} within {job.timeout:g} s "
                f"({type(error).__name__}: {error}). Make the same call on each machine, and check that it can reach "
                "that address"
            )
    if signals.received:
        is_handled = signal.getsignal(signals.received) is not signal.SIG_DFL
        if is_handled:
            signal.raise_signal(signals.received)  # For Ctrl-C, Python's own handler raises KeyboardInterrupt.
        if returned is None or not is_handled:
            raise SystemExit(128 + signals.received)
    if returned is None:
        assert failed is not None
        raise failed
    return next(values for values in returned.values() if values is not None)


class _EndedError(Exception):
    """Raised when a process has ended without an error before its function returned."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank


class _Watch:
    """Watch the signals and the processes of a launch, which elastic does not do in time.

    Attributes:
        signals: the signals that this process has received.
        is_meeting: whether this machine waits for the others, before processes are started.
    """

    def __init__(self, signals: Signals, nproc: int) -> None:
        self.is_meeting = True
        self.signals = signals
        self._nproc = nproc
        self._first_rank = 0
        self._before: set[BaseProcess] = set()
        self._processes: list[BaseProcess] = []

    def meet(self, meeting: Callable[[], RendezvousInfo]) -> RendezvousInfo:
        """Wait for the other machines, before processes are started."""
        self.is_meeting = True
        self._before, self._processes = set(multiprocessing.active_children()), []
        self.look()
        info = meeting()
        self.is_meeting = False
        self.look()
        self._first_rank = info.rank * self._nproc
        return info

    def look(self) -> None:
        """Raise an error that ends the launch after a signal, or if a process has ended without a value."""
        if self.signals.received:
            raise SignalException("stopped", signal.Signals(self.signals.received))
        if not self._processes and not self.is_meeting:
            started = set(multiprocessing.active_children()) - self._before
            self._processes = sorted(started, key=lambda process: int(process.name.rpartition("-")[2]))
        for number, process in enumerate(self._processes):
            if process.exitcode == 0:
                self.kill()
                raise _EndedError(self._first_rank + number)

    def kill(self) -> None:
        """End all processes at once."""
        for process in self._processes:
            process.kill()


class _Meeting(RendezvousHandler):
    """Wrap the rendezvous of torch, which elastic asks several times per second whether machines wait to join.

    Args:
        params: those of torch's rendezvous, and ``watch``, which checks the processes each time.
    """

    def __init__(self, params: RendezvousParameters) -> None:
        self._watch: _Watch = params.get("watch")
        _wait_for_name(params.endpoint.rpartition(":")[0].strip("[]"), params.get("join_timeout"))
        backend, store = create_backend(params)
        self._inner = create_handler(store, backend, params)

    def next_rendezvous(self) -> RendezvousInfo:
        return self._watch.meet(self._inner.next_rendezvous)

    def num_nodes_waiting(self) -> int:
        self._watch.look()
        return self._inner.num_nodes_waiting()

    @property
    def use_agent_store(self) -> bool:
        return self._inner.use_agent_store

    def get_backend(self) -> str:
        return "fit"

    def is_closed(self) -> bool:
        return self._inner.is_closed()

    def set_closed(self) -> None:
        self._inner.set_closed()

    def get_run_id(self) -> str:
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        return self._inner.shutdown()


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


def _in_thread(call: Callable[[], dict[int, Any]], watch: _Watch) -> tuple[dict[int, Any] | None, BaseException | None]:
    """Call a function in a thread, where elastic cannot set signal handlers, and return its value or its error."""
    outcome: list[Any] = [None, None]

    def target() -> None:
        try:
            outcome[0] = call()
        except BaseException as error:
            outcome[1] = error

    thread = threading.Thread(target=target, name="fit_distributed", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
            if watch.is_meeting and watch.signals.received:  # Processes were not started, so there is nothing to save.
                break
    except KeyboardInterrupt:
        watch.kill()
        thread.join(5)
        raise
    return outcome[0], outcome[1]


@contextmanager
def _keep_environment() -> Iterator[None]:
    """Restore the environment and the log levels, which elastic changes."""
    environment = dict(os.environ)
    # It would print about 45 lines for one failure.
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(_NOISY)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


@contextmanager
def _without_stdin() -> Iterator[None]:
    """Hide the name of a main module that is not a file: new processes would try to import ``<stdin>``."""
    main: Any = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None or os.path.exists(path):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = path


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Not on macOS and Windows.
    return len(affinity(0)) if affinity else os.cpu_count() or 1
