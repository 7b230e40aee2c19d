"""Run a job in new processes with torch elastic, the engine of torchrun, and watch them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from . import worker
from .meeting import EndedError, Meeting, Watch
from .reports import explain
from .signals import Signals

__all__ = ["run"]

_NOISY = ("torch.distributed.elastic", "torch.multiprocessing")


def run(job: worker.Job, nproc: int, nnodes: int, rdzv: str | None, max_restarts: int) -> list[bytes]:
    """Run a job on `nproc` new processes here and on those of the other machines. Return the results."""
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
        watch = Watch(signals, nproc, nnodes, job.timeout)
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
        rendezvous_handler_registry.register("fit", Meeting)
        sys.stdout.flush()  # Earlier output comes before that of the processes.
        returned, error = _in_thread(lambda: elastic_launch(config, worker.work)(job), watch)
        restarts = 0
        while restarts < max_restarts and _is_lost(error) and watch.may_meet_again():
            restarts += 1
            config.max_restarts = max_restarts - restarts
            logging.getLogger("fit_distributed").warning(
                "restart %s of %s: lost the connection to %s, where the machines meet", restarts, max_restarts, rdzv
            )
            returned, error = _in_thread(lambda: elastic_launch(config, worker.work)(job), watch)
        failed: BaseException | None = error
        if isinstance(error, ChildFailedError):
            rank, failure = error.get_first_failure()
            failed = explain(Path(folder), rank, failure.exitcode, nproc * nnodes)
        elif isinstance(error, EndedError):
            failed = explain(Path(folder), error.rank, error.exitcode, nproc * nnodes)
        elif isinstance(error, RendezvousClosedError):
            failed = ConnectionError("another machine has ended the run. Its own message says why")
        elif _is_lost(error) and (restarts or watch.has_store):
            again = f" and did not meet there again within {job.timeout:g} s." if restarts else "."
            failed = ConnectionError(
                f"lost the connection to {rdzv}, where the machines meet{again} Start the same program on each "
                "machine again"
            )
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


def _is_lost(error: BaseException | None) -> bool:
    """Return whether the store at which the machines meet did not answer."""
    return isinstance(error, (RendezvousConnectionError, DistNetworkError))


def _in_thread(call: Callable[[], dict[int, Any]], watch: Watch) -> tuple[dict[int, Any] | None, BaseException | None]:
    """Call a function in a thread, where elastic cannot set signal handlers, and return its value or its error."""
    outcome: list[Any] = [None, None]

    def target() -> None:
        try:
            outcome[0] = call()
        except BaseException as error:
            outcome[1] = error

    watch.begin()
    thread = threading.Thread(target=target, name="fit_distributed", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
            if watch.is_meeting and watch.signals.received:  # Processes were not started, so there is nothing to save.
                break
            # The thread may wait for an answer for as long as the kernel does, half an hour, or for ever.
            if error := watch.lost() or watch.stuck():
                watch.kill()
                return None, error
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
    """Hide the name of a main module that is not a file: new processes would try to import `<stdin>`."""
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
